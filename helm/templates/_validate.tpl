{{/* All that is wrong with the values, at once, before anything is made. */}}
{{- define "timescaledb.validate" -}}
{{- with include "timescaledb.wrong" . | trim }}
{{- fail (printf "\n\nThe values are not right yet, nothing was changed:\n%s\n" .) }}
{{- end }}
{{- end }}

{{- define "timescaledb.wrong" -}}
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
{{- if and .enabled (or .host (ne (int .port) 5432)) }}
- database.host and database.port take database.enabled=false: else the chart's own database is
  backed up.
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
{{- if not (regexMatch "^([0-9a-fA-F]{64}\n?)?$" .) }}
- backup.colonies.colonyPrvkey and executorPrvkey: a private key has 64 hexadecimal digits.
{{- end }}
{{- end }}
{{- if and .existingSecret (not (or .secretKeys.colonyPrvkey .secretKeys.executorPrvkey)) }}
- backup.colonies.secretKeys names no key of backup.colonies.existingSecret.
{{- end }}
{{- end }}

{{- with $backup.s3 }}
{{- $account := $.Values.serviceAccount }}
{{- $role := ternary $account.annotations $account.name $account.create }}
{{- if not .bucket }}
- backup.s3.bucket is missing.
{{- end }}
{{- if ne (empty .accessKey) (empty .secretAccessKey) }}
- backup.s3.accessKey and backup.s3.secretAccessKey: one of them is missing.
{{- else if not (or .accessKey .existingSecret $role) }}
- backup.s3.accessKey and secretAccessKey, or backup.s3.existingSecret, are missing: keys for S3.
  Only a role does without them: see serviceAccount.
{{- end }}
{{- end }}

{{- with $backup.verify }}
{{- if and .host (not (or .password .existingSecret)) }}
- backup.verify.password or backup.verify.existingSecret is missing: the password at
  backup.verify.host.
{{- end }}
{{- end }}
{{- include "timescaledb.wrongMonitoring" . }}
{{- if has (clean $backup.path) (list "/" "/app" "/tmp" "/secrets") }}
- backup.path: there is something else at {{ clean $backup.path }}.
{{- end }}
{{- $mounts := list "/tmp" $backup.path }}
{{- range $backup.extraVolumeMounts }}
{{- $mounts = append $mounts .mountPath }}
{{- end }}
{{- $writable := false }}
{{- range $mounts }}
{{- $writable = or $writable (hasPrefix (clean . | printf "%s/") (clean $backup.aliveFile)) }}
{{- end }}
{{- if not $writable }}
- backup.aliveFile is on the read-only root: it goes below /tmp, backup.path or one of
  backup.extraVolumeMounts.
{{- end }}
{{- $crons := dict }}
{{- range list "cron" "verifyCron" "checkCron" }}
{{- if index $backup . }}
{{- $key := printf "%sName" . }}
{{- with get $crons (index $backup $key) }}
- backup.{{ . }} and backup.{{ $key }} are the same.
{{- end }}
{{- $_ := set $crons (index $backup $key) $key }}
{{- end }}
{{- end }}

{{- $ours := list "data" "backups" "secrets" "database-secret" "shm" "tmp" "backup-tmp" "run" }}
{{- range .Values.extraVolumes }}
{{- if has .name $ours }}
- extraVolumes: {{ .name }} is the name of a volume of the chart.
{{- end }}
{{- end }}

{{- $both := "and existingSecret are both set: which one?" }}
{{- range $where, $values := dict "database" .Values.database "backup.colonies" $backup.colonies
    "backup.s3" $backup.s3 "backup.verify" $backup.verify
    "backup.heartbeat" $backup.heartbeat }}
{{- range $key, $_ := $values.secretKeys }}
{{- if and $values.existingSecret (index $values $key) }}
- {{ $where }}.{{ $key }} {{ $both }}
{{- end }}
{{- end }}
{{- end }}

{{- range $label, $_ := include "timescaledb.selectorLabels" . | fromYaml }}
{{- if hasKey $.Values.podLabels $label }}
- podLabels: {{ $label }} is set by the chart.
{{- end }}
{{- end }}
{{- range $where, $taken := dict
    "database" "^(PGDATA|POSTGRES_(DB|USER|PASSWORD)(_FILE)?)$"
    "backup" "^((COLONIES|BACKUP|DB|AWS_S3|VERIFY|HEARTBEAT|METRICS)_.*|FULL_BACKUPS|LOG_LEVEL)$" }}
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

{{- /*
Looked up in the cluster; where there is none, as in `helm template`, nothing is found. As a
subchart, too, whose Chart.Name is its alias: other charts, and this one under other aliases, have
StatefulSets of their own in the release. Two of one alias, below two charts, differ in the path.
*/}}
{{- if .Release.IsUpgrade }}
{{- $name := include "timescaledb.fullname" . }}
{{- $path := include "timescaledb.path" . }}
{{- $label := include "timescaledb.chart" . }}
{{- $pattern := regexQuoteMeta .Chart.Name | printf "^%s-[0-9]+[.]" }}
{{- range (lookup "apps/v1" "StatefulSet" .Release.Namespace "").items }}
{{- $labels := .metadata.labels | default dict }}
{{- $annotations := .metadata.annotations | default dict }}
{{- $chart := get $labels "helm.sh/chart" }}
{{- $kept := and $.Values.database.enabled (eq .metadata.name (printf "%s-statefulset" $name)) }}

{{- $ours := or (regexMatch $pattern $chart) (eq $chart $label) }}
{{- $ours = and $ours (eq (get $labels "app.kubernetes.io/instance") $.Release.Name) }}
{{- $there := get $annotations "timescaledb.chart/path" | default $path }}
{{- $ours = and $ours (or (eq $path "") (eq $path $there)) }}

{{- /*
Its labels name neither chart nor release; Helm's own annotation does the release. Its claims are
the release's: to uninstall it deletes the database, also where they are annotated to be kept, as
Helm looks for that in the manifest which it has stored (3.17 and 4.3, seen).
*/}}
{{- $older := and $kept (ne (get .spec "serviceName") (printf "%s-headless" $name)) }}
{{- $here := eq (get $annotations "meta.helm.sh/release-name") $.Release.Name }}
{{- $older = or $older (and $.Chart.IsRoot $here (not $chart)) }}
{{- if $older }}
- The StatefulSet {{ .metadata.name }} is that of an older chart, which this one cannot take over:
  see README, "Come from the older chart".
{{- else if and $ours (not $kept) }}
- The StatefulSet {{ .metadata.name }} would be deleted, with the pod of the database: the names and
  database.enabled must stay as they were.
{{- end }}
{{- end }}
{{- end }}
{{- end }}
