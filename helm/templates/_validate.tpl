{{/*
What is wrong, a line for each with a dash before it. Here: values that are missing, or that
contradict each other.
*/}}
{{- define "timescaledb.wrongValues" -}}
{{- $backup := .Values.backup }}
{{- $tag := printf "REGISTRY/backup-executor:%s" .Chart.AppVersion }}
{{- if not $backup.image.repository }}
- backup.image.repository is missing. Build the image and push it:
    docker build -t {{ $tag }} . && docker push {{ $tag }}
{{- end }}

{{- with .Values.database }}
{{- if not (or .password .existingSecret) }}
- database.password or database.existingSecret is missing: the password of the database.
{{- end }}
{{- if not (or .enabled .host) }}
- database.host is missing: the server to back up, with database.enabled=false.
{{- end }}
{{- if not (or .image.tag .image.digest) }}
- database.image.tag or database.image.digest is missing.
{{- end }}
{{- if and .enabled (or .host (ne (.port | default 5432 | int) 5432)) }}
- database.host and database.port take database.enabled=false: else the chart's own database is
  backed up.
{{- end }}
{{- if and .enabled (eq (int $backup.metricsPort) 5432) }}
- backup.metricsPort: 5432 is the port of the database, in the same pod.
{{- end }}
{{- with .persistence.existingClaim }}
{{- if eq . ($backup.persistence.existingClaim | default "") }}
- backup.persistence.existingClaim is the database's: dumps would fill its volume.
{{- end }}
{{- end }}
{{- if and .enabled (not $backup.persistence.enabled) }}
- backup.persistence.enabled=false takes database.enabled=false: when a folder on the node is full,
  the kubelet evicts the whole pod, with the database.
{{- end }}
{{- end }}

{{- with $backup.colonies }}
{{- if not .host }}
- backup.colonies.host is missing: the Colonies server.
{{- end }}
{{- if not (or .colonyName .colonyId) }}
- backup.colonies.colonyName or backup.colonies.colonyId is missing.
{{- end }}
{{- if not (or .colonyPrvkey .executorPrvkey .existingSecret) }}
- backup.colonies.colonyPrvkey, executorPrvkey or existingSecret is missing: the key of the colony's
  owner, or the executor's own.
{{- end }}
{{- range list .colonyPrvkey .executorPrvkey }}
{{- if not (. | default "" | regexMatch "^([0-9a-fA-F]{64}\n?)?$") }}
- backup.colonies.colonyPrvkey and executorPrvkey: a private key has 64 hexadecimal digits.
{{- end }}
{{- end }}
{{- $keys := .secretKeys | default dict }}
{{- if and .existingSecret (not (or $keys.colonyPrvkey $keys.executorPrvkey)) }}
- backup.colonies.secretKeys names no key of backup.colonies.existingSecret.
{{- end }}
{{- end }}

{{- with $backup.s3 }}
{{- if not .bucket }}
- backup.s3.bucket is missing.
{{- end }}
{{- if ne (empty .accessKey) (empty .secretAccessKey) }}
- backup.s3.accessKey and backup.s3.secretAccessKey: one of them is missing.
{{- else if not (or .accessKey .existingSecret .ambient) }}
- backup.s3.accessKey and secretAccessKey, or backup.s3.existingSecret, are missing: keys for S3.
  Where the pod has them from outside, by a role say, set backup.s3.ambient=true.
{{- else if and .ambient (or .accessKey .existingSecret) }}
- backup.s3.ambient says that keys come from outside, and there are some: which ones?
{{- end }}
{{- end }}

{{- with $backup.verify }}
{{- if and .host (not (or .password .existingSecret)) }}
- backup.verify.password or backup.verify.existingSecret is missing: the password at
  backup.verify.host.
{{- end }}
{{- end }}

{{- range $where, $host := dict "database." .Values.database.host
    "backup.colonies." $backup.colonies.host "backup.verify." ($backup.verify).host }}
{{- $word := "[^\\s/@?#\\[\\]:]+" }}
{{- if not (. | default "" | regexMatch (printf "^(%s|[0-9a-fA-F]*(:(%s)?){2,})?$" $word $word)) }}
- {{ $where }}host is a name or an address alone: no scheme and no path, and the port goes to
  {{ $where }}port.
{{- end }}
{{- end }}

{{- with $backup.ca }}
{{- if gt (list .pem .existingConfigMap .existingSecret | compact | len) 1 }}
- backup.ca: pem, existingConfigMap and existingSecret: which one?
{{- end }}
{{- if and .pem (not (contains "-----BEGIN CERTIFICATE-----" .pem)) }}
- backup.ca.pem has no certificate.
{{- end }}
{{- if contains "PRIVATE KEY" (.pem | default "") }}
- backup.ca.pem holds a private key, and goes where everybody may read it: certificates alone.
{{- end }}
{{- end }}
{{- $crons := dict }}
{{- range list "cron" "verifyCron" "checkCron" }}
{{- $key := printf "%sName" . }}
{{- $name := get $backup $key }}
{{- if and (get $backup .) $name }}
{{- with get $crons $name }}
- backup.{{ . }} and backup.{{ $key }} are the same.
{{- end }}
{{- $_ := set $crons $name $key }}
{{- end }}
{{- end }}

{{- $parts := merge (dict "database" .Values.database) $backup }}
{{- range include "timescaledb.allSecrets" . | fromYamlArray }}
{{- $values := get $parts .of | default dict }}
{{- $where := ternary .of (printf "backup.%s" .of) (eq .of "database") }}
{{- if and $values.existingSecret (get $values .value) }}
- {{ $where }}.{{ .value }} and existingSecret are both set: which one?
{{- else if and $values.existingSecret (ne .of "colonies")
    (not (get ($values.secretKeys | default dict) .value)) }}
- {{ $where }}.secretKeys.{{ .value }} is missing: its key in {{ $where }}.existingSecret.
{{- end }}
{{- end }}
{{- end }}

{{/* What Kubernetes, or the programs in it, would refuse of the pod. */}}
{{- define "timescaledb.wrongPod" -}}
{{- $backup := .Values.backup }}
{{- if has (clean $backup.path) (list "/" "/app" "/tmp" "/secrets") }}
- backup.path: there is something else at {{ clean $backup.path }}.
{{- end }}
{{- if hasPrefix "/secrets/" (clean $backup.path) }}
- backup.path: nothing can be mounted below /secrets, which is read-only.
{{- end }}
{{- $ours := list "data" "backups" "secrets" "database-secret" "shm" "tmp" "backup-tmp" "run" }}
{{- $paths := list $backup.path "/secrets" "/tmp" }}
{{- if include "timescaledb.authorities" . }}
{{- $ours = append $ours "backup-ca" }}
{{- $paths = append $paths "/etc/backup-ca" }}
{{- end }}
{{- $volumes := list }}
{{- range .Values.extraVolumes }}
{{- if has .name $ours }}
- extraVolumes: {{ .name }} is the name of a volume of the chart.
{{- else if has .name $volumes }}
- extraVolumes: {{ .name }} is there twice.
{{- end }}
{{- $volumes = append $volumes .name }}
{{- end }}
{{- $volumes = concat $volumes $ours }}
{{- $own := list "/var/lib/postgresql/data" "/secrets" "/dev/shm" "/tmp" "/var/run/postgresql" }}
{{- range $where, $paths := dict "database" $own "backup" $paths }}
{{- $mounted := list }}
{{- range $paths }}
{{- $mounted = clean . | append $mounted }}
{{- end }}
{{- range (index $.Values $where).extraVolumeMounts }}
{{- $path := toString .mountPath | clean }}
{{- if has $path $mounted }}
- {{ $where }}.extraVolumeMounts: there is something else at {{ $path }}.
{{- end }}
{{- if hasPrefix "/secrets/" $path }}
- {{ $where }}.extraVolumeMounts: nothing can be mounted below /secrets, which is read-only.
{{- end }}
{{- if not (has .name $volumes) }}
- {{ $where }}.extraVolumeMounts: {{ .name }} is none of extraVolumes.
{{- end }}
{{- $mounted = append $mounted $path }}
{{- end }}
{{- end }}
{{- $writable := list "/tmp" $backup.path }}
{{- range $backup.extraVolumeMounts }}
{{- $writable = toString .mountPath | append $writable }}
{{- end }}
{{- $alive := false }}
{{- range $writable }}
{{- $alive = or $alive (hasPrefix (clean . | printf "%s/") (clean $backup.aliveFile)) }}
{{- end }}
{{- if not $alive }}
- backup.aliveFile is on the read-only root: it goes below /tmp, backup.path or one of
  backup.extraVolumeMounts.
{{- end }}

{{- $containers := list "postgres" "backup" }}
{{- range $where := list "sidecars" "initContainers" }}
{{- range get $.Values $where | default list }}
{{- if has .name $containers }}
- {{ $where }}: there is another container {{ .name }}.
{{- end }}
{{- $containers = append $containers .name }}
{{- end }}
{{- end }}

{{- $marks := "^(app\\.kubernetes\\.io/(name|instance|version|managed-by)|helm\\.sh/.*)$" }}
{{- $hooks := "^((meta\\.)?helm\\.sh/.*|timescaledb\\.chart/.*)$" }}
{{- range $where, $texts := dict "commonLabels" (list .Values.commonLabels $marks)
    "database.persistence.labels" (list .Values.database.persistence.labels $marks)
    "backup.persistence.labels" (list $backup.persistence.labels $marks)
    "monitoring.labels" (list (.Values.monitoring).labels $marks)
    "commonAnnotations" (list .Values.commonAnnotations $hooks)
    "podAnnotations" (list .Values.podAnnotations $hooks)
    "database.annotations" (list .Values.database.annotations $hooks) }}
{{- range $name, $_ := first $texts }}
{{- if regexMatch (last $texts) $name }}
- {{ $where }}: {{ $name }} is set by the chart, or by helm.
{{- end }}
{{- end }}
{{- end }}
{{- range $label, $_ := include "timescaledb.selectorLabels" . | fromYaml }}
{{- if hasKey ($.Values.podLabels | default dict) $label }}
- podLabels: {{ $label }} is set by the chart.
{{- end }}
{{- end }}
{{- range $where, $taken := dict
    "database" "^(PGDATA|POSTGRES_(DB|USER|PASSWORD)(_FILE)?)$"
    "backup" "^((AGE|COLONIES|BACKUP|DB|AWS_S3|VERIFY|CHECK|HEARTBEAT|METRICS|FULL|KEEP)_.*|LOG_LEVEL)$" }}
{{- $names := list }}
{{- range (index $.Values $where).extraEnv }}
{{- if regexMatch $taken .name }}
- {{ $where }}.extraEnv: {{ .name }} has a value of its own.
{{- else if has .name $names }}
- {{ $where }}.extraEnv: {{ .name }} is there twice.
{{- end }}
{{- $names = append $names .name }}
{{- end }}
{{- end }}
{{- end }}
