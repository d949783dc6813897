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
{{- with .Values.podSecurityContext }}
securityContext:
  {{- toYaml . | nindent 2 }}
{{- end }}
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

{{- define "timescaledb.image" -}}
{{- $tag := printf ":%v" .tag }}
{{- with .digest }}
{{- $tag = printf "@%s" . }}
{{- end -}}
image: {{ printf "%s%s" .repository $tag | quote }}
{{- with .pullPolicy }}
imagePullPolicy: {{ . }}
{{- end }}
{{- end }}

{{- define "timescaledb.containerSecurityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}

{{/*
A folder in memory that has no more than SIZE: when full it says so. One on the node's disk would
have the kubelet evict the whole pod.
*/}}
{{- define "timescaledb.memoryVolume" -}}
emptyDir: {medium: Memory, sizeLimit: {{ . }}}
{{- end }}

{{- define "timescaledb.claimSpec" -}}
accessModes:
  {{- toYaml .accessModes | nindent 2 }}
{{- with .storageClass }}
storageClassName: {{ ternary "" . (eq . "-") | quote }}
{{- end }}
resources:
  requests:
    storage: {{ .size | quote }}
{{- with .dataSource }}
dataSource:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/*
A StatefulSet's claim by its `name`, of a `persistence`. With what Kubernetes would add, since Argo
CD would see a difference; and with labels that never change, as Kubernetes refuses that.
*/}}
{{- define "timescaledb.claimTemplate" -}}
- apiVersion: v1
  kind: PersistentVolumeClaim
  metadata:
    name: {{ .name }}
    labels:
      {{- include "timescaledb.selectorLabels" .root | nindent 6 }}
      {{- with .persistence.labels }}
      {{- toYaml . | nindent 6 }}
      {{- end }}
    {{- with .persistence.annotations }}
    annotations:
      {{- toYaml . | nindent 6 }}
    {{- end }}
  spec:
    {{- include "timescaledb.claimSpec" .persistence | nindent 4 }}
{{- end }}

{{/* The ports of all peers of the executor, from its settings, as JSON. */}}
{{- define "timescaledb.peersPorts" -}}
{{- $database := .Values.database }}
{{- $ports := list (ternary 5432 ($database.port | default 5432) $database.enabled | int) }}
{{- with .Values.backup }}
{{- $ports = append $ports (int .colonies.port) }}
{{- if (.verify).host }}
{{- $ports = .verify.port | default 5432 | int | append $ports }}
{{- end }}
{{- $endpoint := .s3.endpoint | default "https://" }}
{{- $plain := and (eq (toString .s3.secure) "false") (not (contains "://" $endpoint)) }}
{{- $plain = or $plain (hasPrefix "http://" $endpoint) }}
{{- $own := regexFind ":[0-9]+/?$" $endpoint | trimAll ":/" }}
{{- $ports = append $ports ($own | default (ternary 80 443 $plain) | int) }}
{{- if or .s3.ambient (.heartbeat).url (.heartbeat).existingSecret }}
{{- $ports = append $ports 443 }}
{{- end }}
{{- end }}
{{- $ports | uniq | toJson }}
{{- end }}
