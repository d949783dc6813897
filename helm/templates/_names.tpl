{{/* NAME: no release in it, so that `timescaledb-statefulset-0` is the pod in each namespace. */}}
{{- define "timescaledb.fullname" -}}
{{- .Values.fullnameOverride | default (include "timescaledb.name" .) | trunc 40 | trimSuffix "-" }}
{{- end }}

{{- define "timescaledb.name" -}}
{{- .Values.nameOverride | default .Chart.Name | trunc 40 | trimSuffix "-" }}
{{- end }}

{{- define "timescaledb.workloadName" -}}
{{- $kind := ternary "statefulset" "backup" .Values.database.enabled }}
{{- printf "%s-%s" (include "timescaledb.fullname" .) $kind }}
{{- end }}

{{/* The way that clients take to the database. */}}
{{- define "timescaledb.clientHost" -}}
{{- $own := include "timescaledb.fullname" . | printf "%s-service" }}
{{- ternary $own .Values.database.host .Values.database.enabled }}
{{- end }}

{{- define "timescaledb.chart" -}}
{{- printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimAll "-._" }}
{{- end }}

{{/* Where the parents have this chart, `charts/ALIAS/`; empty without a parent. */}}
{{- define "timescaledb.path" -}}
{{- regexReplaceAll "^[^/]+/|templates$" .Template.BasePath "" }}
{{- end }}

{{- define "timescaledb.serviceAccountName" -}}
{{- $own := "default" }}
{{- if (.Values.serviceAccount).create }}
{{- $own = include "timescaledb.fullname" . }}
{{- end }}
{{- (.Values.serviceAccount).name | default $own }}
{{- end }}

{{/* With the namespace: two of them in one colony are two executors. */}}
{{- define "timescaledb.executorName" -}}
{{- $own := printf "backup-%s-%s" .Release.Namespace (include "timescaledb.fullname" .) }}
{{- .Values.backup.colonies.executorName | default $own }}
{{- end }}

{{/* These never change with the chart's version: selectors and claim templates are immutable. */}}
{{- define "timescaledb.selectorLabels" -}}
app.kubernetes.io/name: {{ include "timescaledb.name" . | quote }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end }}

{{/* Of an object of `root`: its `name`, and `labels` and `annotations` beside those of all. */}}
{{- define "timescaledb.metadata" -}}
{{- $values := .root.Values }}
name: {{ .name | quote }}
namespace: {{ .root.Release.Namespace | quote }}
labels:
  {{- include "timescaledb.labels" .root | nindent 2 }}
  {{- with merge (dict) (.labels | default dict) ($values.commonLabels | default dict) }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with merge (dict) (.annotations | default dict) ($values.commonAnnotations | default dict) }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "timescaledb.labels" -}}
{{ include "timescaledb.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ include "timescaledb.chart" . }}
{{- end }}
