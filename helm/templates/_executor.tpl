{{- define "timescaledb.backupContainer" -}}
{{- $host := ternary "localhost" .Values.database.host .Values.database.enabled }}
- name: backup
  {{- $of := dict "root" . "host" $host "command" .Values.backup.command }}
  {{- include "timescaledb.executor" $of | trim | nindent 2 }}
  {{- with .Values.backup.metricsPort }}
  ports:
    - {name: metrics, containerPort: {{ . }}}
  {{- end }}
  # No readiness or startup probe: the pod, the database's, would be ready only with the sidecar.
  # This one restarts the sidecar alone, when nothing has touched the file for some 5 minutes.
  livenessProbe:
    exec:
      command: [sh, -c, 'find "$BACKUP_ALIVE_FILE" -mmin -3 | grep -q .']
    periodSeconds: 60
    timeoutSeconds: 10
{{- end }}

{{/*
A container of the executor, less its name: of `root`, with `host` as the database's, and `command`.
*/}}
{{- define "timescaledb.executor" -}}
{{- $tag := .root.Values.backup.image.tag | default .root.Chart.AppVersion }}
{{- include "timescaledb.image" (merge (dict "tag" $tag) .root.Values.backup.image) }}
command:
  {{- toYaml .command | nindent 2 }}
env:
  {{- include "timescaledb.settings" . | trim | nindent 2 }}
  {{- with .root.Values.backup.extraEnv }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
securityContext:
  {{- include "timescaledb.containerSecurityContext" .root | nindent 2 }}
{{- with .root.Values.backup.resources }}
resources:
  {{- toYaml . | nindent 2 }}
{{- end }}
volumeMounts:
  - {name: backups, mountPath: {{ .root.Values.backup.path | quote }}}
  - {name: secrets, mountPath: /secrets, readOnly: true}
  - {name: backup-tmp, mountPath: /tmp}
  {{- if include "timescaledb.authorities" .root }}
  - {name: backup-ca, mountPath: /etc/backup-ca, readOnly: true}
  {{- end }}
  {{- with .root.Values.backup.extraVolumeMounts }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end }}

{{/* Its environment variables: settings, less those that are empty, and where secrets are. */}}
{{- define "timescaledb.settings" -}}
{{- range include "timescaledb.allSettings" . | fromYamlArray }}
{{- if not (has .value (list nil "")) }}
- name: {{ .name }}
  value: {{ kindIs "string" .value | ternary .value (toJson .value) | quote }}
{{- end }}
{{- end }}
{{- range include "timescaledb.secretFiles" .root | fromYamlArray }}
- name: {{ .setting }}_FILE
  value: /secrets/{{ .file }}
{{- end }}
{{- end }}

{{/* Their order is the pod's template's: a new one goes to the end, lest the database restarts. */}}
{{- define "timescaledb.allSettings" -}}
{{- $executor := include "timescaledb.executorName" .root }}
{{- $host := .host }}
{{- $database := .root.Values.database }}
{{- $ca := include "timescaledb.authorities" .root | empty | ternary "" "/etc/backup-ca/ca.crt" }}
{{- with .root.Values.backup }}
- {name: COLONIES_SERVER_HOST, value: {{ toJson .colonies.host }}}
- {name: COLONIES_SERVER_PORT, value: {{ toJson .colonies.port }}}
- {name: COLONIES_TLS, value: {{ toJson .colonies.tls }}}
- {name: COLONIES_INSECURE_SKIP_VERIFY, value: {{ toJson .colonies.insecureSkipVerify }}}
- {name: COLONIES_CA_FILE, value: {{ toJson (.colonies.caFile | default $ca) }}}
- {name: COLONIES_COLONY_NAME, value: {{ toJson .colonies.colonyName }}}
- {name: COLONIES_COLONY_ID, value: {{ toJson .colonies.colonyId }}}
- {name: COLONIES_EXECUTOR_NAME, value: {{ toJson $executor }}}
- {name: COLONIES_EXECUTOR_TYPE, value: {{ toJson .colonies.executorType }}}
- {name: BACKUP_CRON, value: {{ toJson .cron }}}
- {name: BACKUP_CRON_NAME, value: {{ toJson .cronName }}}
- {name: VERIFY_CRON, value: {{ toJson .verifyCron }}}
- {name: VERIFY_CRON_NAME, value: {{ toJson (and .verifyCron .verifyCronName) }}}
- {name: CHECK_CRON, value: {{ toJson .checkCron }}}
- {name: CHECK_CRON_NAME, value: {{ toJson (and .checkCron .checkCronName) }}}
- {name: CHECK_MAX_AGE, value: {{ toJson .checkMaxAge }}}
- {name: BACKUP_MAX_WAIT, value: {{ toJson .maxWait }}}
- {name: DB_HOST, value: {{ toJson $host }}}
- {name: DB_PORT, value: {{ toJson (ternary 5432 $database.port $database.enabled) }}}
- {name: DB_DATABASE, value: {{ toJson $database.name }}}
- {name: DB_USER, value: {{ toJson $database.user }}}
- {name: AWS_S3_ENDPOINT, value: {{ toJson .s3.endpoint }}}
- {name: AWS_S3_SECURE, value: {{ toJson .s3.secure }}}
- {name: AWS_S3_INSECURE_SKIP_VERIFY, value: {{ toJson .s3.insecureSkipVerify }}}
- {name: AWS_S3_CA_FILE, value: {{ toJson (.s3.caFile | default (and .s3.endpoint $ca)) }}}
- {name: AWS_S3_REGION, value: {{ toJson .s3.region }}}
- {name: AWS_S3_BUCKET_NAME, value: {{ toJson .s3.bucket }}}
- {name: AWS_S3_PREFIX, value: {{ toJson .s3.prefix }}}
- {name: FULL_BACKUPS, value: {{ toJson .fullBackups }}}
- {name: BACKUP_PATH, value: {{ toJson .path }}}
- {name: METRICS_PORT, value: {{ toJson (.metricsPort | default "") }}}
- {name: BACKUP_COMPRESSION, value: {{ toJson .compression }}}
- {name: BACKUP_ROLES, value: {{ toJson .roles }}}
- {name: BACKUP_ALIVE_FILE, value: {{ toJson .aliveFile }}}
- {name: LOG_LEVEL, value: {{ toJson .logLevel }}}
{{- with .verify }}
{{- if .host }}
- {name: VERIFY_DB_HOST, value: {{ toJson .host }}}
- {name: VERIFY_DB_PORT, value: {{ toJson .port }}}
- {name: VERIFY_DB_USER, value: {{ toJson .user }}}
{{- end }}
{{- end }}
- {name: AWS_S3_ADDRESSING, value: {{ toJson .s3.addressing }}}
- {name: BACKUP_AGE_RECIPIENTS, value: {{ toJson (.age).recipients }}}
- {name: KEEP_DAILY, value: {{ toJson (.keepDaily | default "") }}}
- {name: KEEP_WEEKLY, value: {{ toJson (.keepWeekly | default "") }}}
- {name: KEEP_MONTHLY, value: {{ toJson (.keepMonthly | default "") }}}
- {name: KEEP_YEARLY, value: {{ toJson (.keepYearly | default "") }}}
{{- end }}
{{- end }}

{{/* Its volumes, less the one for backups. */}}
{{- define "timescaledb.executorVolumes" -}}
- name: secrets
  {{- $files := include "timescaledb.secretFiles" . | fromYamlArray }}
  {{- include "timescaledb.secretVolume" $files | nindent 2 }}
- name: backup-tmp
  {{- include "timescaledb.memoryVolume" "256Mi" | nindent 2 }}
{{- with include "timescaledb.authorities" . | fromYaml }}
- name: backup-ca
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/*
Those of a pod of its own that runs `check`, less the one for backups: of extraVolumes what the
executor mounts, since a claim of the database's is on its node alone.
*/}}
{{- define "timescaledb.checkVolumes" -}}
{{- include "timescaledb.executorVolumes" . }}
{{- $mounted := list }}
{{- range .Values.backup.extraVolumeMounts }}
{{- $mounted = append $mounted .name }}
{{- end }}
{{- range .Values.extraVolumes }}
{{- if has .name $mounted }}
{{ list . | toYaml }}
{{- end }}
{{- end }}
{{- end }}

{{/*
The volume of the authorities of one's own, if there are. Optional, as what the sidecar alone needs.
*/}}
{{- define "timescaledb.authorities" -}}
{{- $own := include "timescaledb.fullname" . | printf "%s-ca" }}
{{- with .Values.backup.ca }}
{{- $items := list (dict "key" (ternary "ca.crt" .key (not (empty .pem))) "path" "ca.crt") }}
{{- if .existingSecret }}
secret: {secretName: {{ .existingSecret | quote }}, optional: true, items: {{ toJson $items }}}
{{- else if or .pem .existingConfigMap }}
{{- $name := .existingConfigMap | default $own | quote }}
configMap: {name: {{ $name }}, optional: true, items: {{ toJson $items }}}
{{- end }}
{{- end }}
{{- end }}

{{/*
A volume of such files: mounted without subPath, they change in the running pod. Optional, since one
that is missing is the executor's to complain of: the database in its pod starts all the same.
*/}}
{{- define "timescaledb.secretVolume" -}}
projected:
  defaultMode: 0440
  sources:
    {{- range . }}
    - secret:
        name: {{ .secret | quote }}
        optional: true
        items:
          - {key: {{ .key | quote }}, path: {{ .file }}}
    {{- end }}
{{- end }}

{{/*
The secrets that are there, as a list of: which `setting` they are, in which `file` below /secrets,
from which `key` of which `secret`; and its `value` where that Secret is the chart's own.
*/}}
{{- define "timescaledb.secretFiles" -}}
{{- $name := include "timescaledb.fullname" . }}
{{- $parts := merge (dict "database" .Values.database) .Values.backup }}
{{- range include "timescaledb.allSecrets" . | fromYamlArray }}
{{- $values := get $parts .of | default dict }}
{{- $existing := get $values "existingSecret" }}
{{- $key := get ($values.secretKeys | default dict) .value }}
{{- $value := get $values .value }}
{{- if or (and $existing $key) (and (not $existing) $value) }}
- setting: {{ .setting }}
  file: {{ .file }}
  {{- if $existing }}
  secret: {{ $existing | quote }}
  key: {{ $key | quote }}
  {{- else }}
  secret: {{ printf "%s-%s" $name .of | quote }}
  key: {{ .key }}
  value: {{ $value | quote }}
  {{- end }}
{{- end }}
{{- end }}
{{- end }}

{{/* Each secret that there can be: the `value` `of` a part, and its `key` in the chart's Secret. */}}
{{- define "timescaledb.allSecrets" -}}
- {of: database, value: password, setting: DB_PASSWORD, file: db-password, key: password}
- {of: colonies, value: colonyPrvkey, setting: COLONIES_COLONY_PRVKEY, file: colony-prvkey,
   key: colony-prvkey}
- {of: colonies, value: executorPrvkey, setting: COLONIES_EXECUTOR_PRVKEY, file: executor-prvkey,
   key: executor-prvkey}
- {of: s3, value: accessKey, setting: AWS_S3_ACCESS_KEY, file: s3-access-key, key: access-key}
- {of: s3, value: secretAccessKey, setting: AWS_S3_SECRET_ACCESS_KEY, file: s3-secret-access-key,
   key: secret-access-key}
- {of: verify, value: password, setting: VERIFY_DB_PASSWORD, file: verify-db-password,
   key: password}
- {of: age, value: identity, setting: AGE_IDENTITY, file: age-identity, key: identity}
- {of: heartbeat, value: url, setting: HEARTBEAT_URL, file: heartbeat-url, key: url}
{{- end }}
