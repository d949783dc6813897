{{/* NAME: no release in it, so that `timescaledb-statefulset-0` is the pod in each namespace. */}}
{{- define "timescaledb.fullname" -}}
{{- .Values.fullnameOverride | default (include "timescaledb.name" .) | trunc 40 | trimSuffix "-" }}
{{- end }}

{{- define "timescaledb.name" -}}
{{- .Values.nameOverride | default .Chart.Name | trunc 40 | trimSuffix "-" }}
{{- end }}

{{/* These never change with the chart's version: selectors and claim templates are immutable. */}}
{{- define "timescaledb.selectorLabels" -}}
app.kubernetes.io/name: {{ include "timescaledb.name" . | quote }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end }}

{{- define "timescaledb.labels" -}}
{{ include "timescaledb.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ include "timescaledb.chart" . }}
{{- end }}

{{- define "timescaledb.chart" -}}
{{- printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 }}
{{- end }}

{{/* Where the parents have this chart, `charts/ALIAS/`; empty without a parent. */}}
{{- define "timescaledb.path" -}}
{{- regexReplaceAll "^[^/]+/|templates$" .Template.BasePath "" }}
{{- end }}

{{- define "timescaledb.serviceAccountName" -}}
{{- $own := ternary (include "timescaledb.fullname" .) "default" .Values.serviceAccount.create }}
{{- .Values.serviceAccount.name | default $own }}
{{- end }}

{{/* With the namespace: two of them in one colony are two executors. */}}
{{- define "timescaledb.executorName" -}}
{{- $own := printf "backup-%s-%s" .Release.Namespace (include "timescaledb.fullname" .) }}
{{- .Values.backup.colonies.executorName | default $own }}
{{- end }}

{{- define "timescaledb.image" -}}
{{- .repository }}{{ if .digest }}@{{ .digest }}{{ else }}:{{ .tag }}{{ end }}
{{- end }}

{{- define "timescaledb.backupImage" -}}
{{- $tag := .Values.backup.image.tag | default .Chart.AppVersion }}
{{- include "timescaledb.image" (merge (dict "tag" $tag) .Values.backup.image) }}
{{- end }}

{{- define "timescaledb.containerSecurityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}

{{/* What the pod of the database and the pod of the executor alone have in common. */}}
{{- define "timescaledb.podMetadata" -}}
labels:
  {{- include "timescaledb.selectorLabels" . | nindent 2 }}
  {{- with .Values.podLabels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with .Values.podAnnotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "timescaledb.podSpec" -}}
serviceAccountName: {{ include "timescaledb.serviceAccountName" . | quote }}
automountServiceAccountToken: false
enableServiceLinks: false
securityContext:
  {{- toYaml .Values.podSecurityContext | nindent 2 }}
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.priorityClassName }}
priorityClassName: {{ . | quote }}
{{- end }}
{{- end }}

{{/*
The secrets that are there, as a list of: which `setting` they are, in which `file` below /secrets,
from which `key` of which `secret`; and its `value` where that Secret is the chart's own.
*/}}
{{- define "timescaledb.secretFiles" -}}
{{- $name := include "timescaledb.fullname" . }}
{{- $parts := merge (dict "database" .Values.database) .Values.backup }}
{{- range list
  (list "DB_PASSWORD" "db-password" "database" "password" "password")
  (list "COLONIES_COLONY_PRVKEY" "colony-prvkey" "colonies" "colonyPrvkey" "colony-prvkey")
  (list "COLONIES_EXECUTOR_PRVKEY" "executor-prvkey" "colonies" "executorPrvkey" "executor-prvkey")
  (list "AWS_S3_ACCESS_KEY" "s3-access-key" "s3" "accessKey" "access-key")
  (list "AWS_S3_SECRET_ACCESS_KEY" "s3-secret-access-key" "s3"
    "secretAccessKey" "secret-access-key")
  (list "AGE_IDENTITY" "age-identity" "age" "identity" "identity")
  (list "VERIFY_DB_PASSWORD" "verify-db-password" "verify" "password" "password")
  (list "HEARTBEAT_URL" "heartbeat-url" "heartbeat" "url" "url")
}}
{{- $values := index $parts (index . 2) }}
{{- $key := index $values.secretKeys (index . 3) }}
{{- $value := index $values (index . 3) }}
{{- if ternary $key $value (ne $values.existingSecret "") }}
- setting: {{ index . 0 }}
  file: {{ index . 1 }}
  {{- if $values.existingSecret }}
  secret: {{ $values.existingSecret | quote }}
  key: {{ $key | quote }}
  {{- else }}
  secret: {{ $name }}-{{ index . 2 }}
  key: {{ index . 4 }}
  value: {{ $value | quote }}
  {{- end }}
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
A folder in memory that has no more than SIZE: when full it says so. One on the node's disk would
have the kubelet evict the whole pod.
*/}}
{{- define "timescaledb.memoryVolume" -}}
emptyDir: {medium: Memory, sizeLimit: {{ . }}}
{{- end }}

{{/* The executor's settings, as a list of name and value; DB_HOST is given. */}}
{{- define "timescaledb.settings" -}}
{{- $root := index . 0 }}
{{- $executor := include "timescaledb.executorName" $root }}
{{- $host := index . 1 }}
{{- $external := not $root.Values.database.enabled }}
{{- with $root.Values.backup }}
{{- $port := ternary $root.Values.database.port 5432 $external }}
{{- range list
  (list "COLONIES_SERVER_HOST" .colonies.host)
  (list "COLONIES_SERVER_PORT" .colonies.port)
  (list "COLONIES_TLS" .colonies.tls)
  (list "COLONIES_INSECURE_SKIP_VERIFY" .colonies.insecureSkipVerify)
  (list "COLONIES_CA_FILE" .colonies.caFile)
  (list "COLONIES_COLONY_NAME" .colonies.colonyName)
  (list "COLONIES_COLONY_ID" .colonies.colonyId)
  (list "COLONIES_EXECUTOR_NAME" $executor)
  (list "COLONIES_EXECUTOR_TYPE" .colonies.executorType)
  (list "BACKUP_CRON" .cron)
  (list "BACKUP_CRON_NAME" .cronName)
  (list "VERIFY_CRON" .verifyCron)
  (list "VERIFY_CRON_NAME" (ternary .verifyCronName "" (ne .verifyCron "")))
  (list "CHECK_CRON" .checkCron)
  (list "CHECK_CRON_NAME" (ternary .checkCronName "" (ne .checkCron "")))
  (list "CHECK_MAX_AGE" .checkMaxAge)
  (list "BACKUP_MAX_WAIT" .maxWait)
  (list "DB_HOST" $host)
  (list "DB_PORT" $port)
  (list "DB_DATABASE" $root.Values.database.name)
  (list "DB_USER" $root.Values.database.user)
  (list "AWS_S3_ENDPOINT" .s3.endpoint)
  (list "AWS_S3_SECURE" .s3.secure)
  (list "AWS_S3_INSECURE_SKIP_VERIFY" .s3.insecureSkipVerify)
  (list "AWS_S3_CA_FILE" .s3.caFile)
  (list "AWS_S3_REGION" .s3.region)
  (list "AWS_S3_ADDRESSING" .s3.addressing)
  (list "AWS_S3_BUCKET_NAME" .s3.bucket)
  (list "AWS_S3_PREFIX" .s3.prefix)
  (list "BACKUP_AGE_RECIPIENTS" .age.recipients)
  (list "FULL_BACKUPS" (int .fullBackups))
  (list "KEEP_DAILY" (int .keepDaily))
  (list "KEEP_WEEKLY" (int .keepWeekly))
  (list "KEEP_MONTHLY" (int .keepMonthly))
  (list "KEEP_YEARLY" (int .keepYearly))
  (list "BACKUP_PATH" .path)
  (list "METRICS_PORT" (ternary .metricsPort "" (ne (int .metricsPort) 0)))
  (list "BACKUP_COMPRESSION" .compression)
  (list "BACKUP_ROLES" .roles)
  (list "BACKUP_ALIVE_FILE" .aliveFile)
  (list "LOG_LEVEL" .logLevel)
}}
{{- if ne (index . 1 | toString) "" }}
- name: {{ index . 0 }}
  value: {{ index . 1 | toString | quote }}
{{- end }}
{{- end }}
{{- if .verify.host }}
- name: VERIFY_DB_HOST
  value: {{ .verify.host | quote }}
- name: VERIFY_DB_PORT
  value: {{ .verify.port | toString | quote }}
- name: VERIFY_DB_USER
  value: {{ .verify.user | quote }}
{{- end }}
{{- end }}
{{- range include "timescaledb.secretFiles" $root | fromYamlArray }}
- name: {{ .setting }}_FILE
  value: /secrets/{{ .file }}
{{- end }}
{{- end }}

{{/* A container of the executor, less its name; given are the database's host and the command. */}}
{{- define "timescaledb.executor" -}}
{{- $root := index . 0 }}
{{- $host := index . 1 }}
{{- $command := index . 2 }}
image: {{ include "timescaledb.backupImage" $root }}
imagePullPolicy: {{ $root.Values.backup.image.pullPolicy }}
command:
  {{- toYaml $command | nindent 2 }}
env:
  {{- include "timescaledb.settings" (list $root $host) | trim | nindent 2 }}
  {{- with $root.Values.backup.extraEnv }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
securityContext:
  {{- include "timescaledb.containerSecurityContext" $root | nindent 2 }}
{{- with $root.Values.backup.resources }}
resources:
  {{- toYaml . | nindent 2 }}
{{- end }}
volumeMounts:
  - {name: backups, mountPath: {{ $root.Values.backup.path | quote }}}
  - {name: secrets, mountPath: /secrets, readOnly: true}
  - {name: backup-tmp, mountPath: /tmp}
  {{- with $root.Values.backup.extraVolumeMounts }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end }}

{{/* Its volumes, less the one for backups; and those of extraVolumes. */}}
{{- define "timescaledb.executorVolumes" -}}
- name: secrets
  {{- $files := include "timescaledb.secretFiles" . | fromYamlArray }}
  {{- include "timescaledb.secretVolume" $files | nindent 2 }}
- name: backup-tmp
  {{- include "timescaledb.memoryVolume" "256Mi" | nindent 2 }}
{{- with .Values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "timescaledb.backupContainer" -}}
{{- $host := ternary "localhost" .Values.database.host .Values.database.enabled }}
- name: backup
  {{- include "timescaledb.executor" (list . $host .Values.backup.command) | trim | nindent 2 }}
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

{{- define "timescaledb.claimSpec" -}}
accessModes:
  {{- toYaml .accessModes | nindent 2 }}
{{- with .storageClass }}
storageClassName: {{ . | quote }}
{{- end }}
resources:
  requests:
    storage: {{ .size }}
{{- end }}
