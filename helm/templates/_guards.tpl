{{/*
What a change would lose, and what two databases would do to each other: by what is in the
namespace. Without a cluster, as in `helm template`, nothing is found.
*/}}
{{- define "timescaledb.wrongCluster" -}}
{{- if not .Values.skipGuards }}
{{- $there := include "guards: helm needs to list statefulsets and deployments, or skipGuards=true" . | fromJson }}
{{- if .Release.IsUpgrade }}
{{- range $there.StatefulSet }}
{{- include "timescaledb.wrongChange" (dict "root" $ "there" .) }}
{{- end }}
{{- end }}
{{- include "timescaledb.wrongNeighbour" . }}
{{- end }}
{{- end }}

{{/* The namespace's workloads. Its name stands in helm's complaint where it may not list them. */}}
{{- define "guards: helm needs to list statefulsets and deployments, or skipGuards=true" -}}
{{- $found := dict }}
{{- range list "StatefulSet" "Deployment" }}
{{- $_ := set $found . ((lookup "apps/v1" . $.Release.Namespace "").items | default list) }}
{{- end }}
{{- toJson $found }}
{{- end }}

{{/*
What would become of a StatefulSet that is `there`. As a subchart, too, whose Chart.Name is its
alias: other charts, and this one under other aliases, have StatefulSets of their own in the
release. Two of one alias, below two charts, differ in the path.
*/}}
{{- define "timescaledb.wrongChange" -}}
{{- $name := include "timescaledb.fullname" .root }}
{{- $path := include "timescaledb.path" .root }}
{{- $label := include "timescaledb.chart" .root }}
{{- $pattern := regexQuoteMeta .root.Chart.Name | printf "^%s-[0-9]+[.]" }}
{{- $database := .root.Values.database }}
{{- $metadata := .there.metadata }}
{{- $labels := $metadata.labels | default dict }}
{{- $annotations := $metadata.annotations | default dict }}
{{- $chart := get $labels "helm.sh/chart" }}
{{- $kept := and $database.enabled (eq $metadata.name (printf "%s-statefulset" $name)) }}

{{- $ours := or (regexMatch $pattern $chart) (eq $chart $label) }}
{{- $ours = and $ours (eq (get $labels "app.kubernetes.io/instance") .root.Release.Name) }}
{{- $from := get $annotations "timescaledb.chart/path" | default $path }}
{{- $ours = and $ours (or (eq $path "") (eq $path $from)) }}

{{- /*
Its labels name neither chart nor release; Helm's own annotation does the release. Its claims are
the release's: to uninstall it deletes the database, also where they are annotated to be kept, as
Helm looks for that in the manifest which it has stored (3.17 and 4.3, seen).
*/}}
{{- $older := and $kept (ne (get .there.spec "serviceName") (printf "%s-headless" $name)) }}
{{- $here := eq (get $annotations "meta.helm.sh/release-name") .root.Release.Name }}
{{- $older = or $older (and .root.Chart.IsRoot $here (not $chart)) }}
{{- if $older }}
- The StatefulSet {{ $metadata.name }} is that of an older chart, which this one cannot take over:
  see its older-chart.md.
{{- else if and $ours (not $kept) }}
- The StatefulSet {{ $metadata.name }} would be deleted, with the pod of the database: the names and
  database.enabled must stay as they were.
{{- else if and $ours $kept }}
{{- include "timescaledb.wrongVolume" . }}
{{- end }}
{{- end }}

{{/* What the volumes of the StatefulSet that is `there`, and stays, would not bear. */}}
{{- define "timescaledb.wrongVolume" -}}
{{- $values := .root.Values }}
{{- $major := "(^|-)pg([0-9]+)" }}
{{- $new := ternary "" $values.database.image.tag (not (empty $values.database.image.digest)) }}
{{- $new = regexFind $major ($new | default "") | trimPrefix "-" }}
{{- range ((.there.spec.template).spec).containers }}
{{- $old := regexFind $major (splitList ":" .image | last) | trimPrefix "-" }}
{{- if and (eq .name "postgres") $old $new (ne $old $new) }}
- database.image.tag is {{ $new }}, but the data in the volume are {{ $old }}: PostgreSQL would not
  start with them. Install it as a release in another namespace, and move the data there: see
  README, "Update TimescaleDB or PostgreSQL".
{{- end }}
{{- end }}
{{- range .there.spec.volumeClaimTemplates }}
{{- $where := ternary "database" "backup" (eq .metadata.name "data") }}
{{- $persistence := (index $values $where).persistence }}
{{- $size := ((.spec.resources).requests).storage }}
{{- if and $size (not $persistence.existingClaim)
    (ne (include "timescaledb.bytes" $size) (include "timescaledb.bytes" $persistence.size)) }}
- {{ $where }}.persistence.size is {{ $persistence.size }}, and {{ $size }} in the StatefulSet, where
  Kubernetes lets nobody change it: see README, "Grow a volume".
{{- end }}
{{- end }}
{{- end }}

{{/* A quantity as a number, so that 1Gi and 1024Mi are the same. */}}
{{- define "timescaledb.bytes" -}}
{{- $units := dict "k" 1e3 "M" 1e6 "G" 1e9 "T" 1e12 "P" 1e15 "Ki" 1024.0 "Mi" 1048576.0
    "Gi" 1073741824.0 "Ti" 1099511627776.0 "Pi" 1125899906842624.0 }}
{{- $unit := toString . | regexFind "[A-Za-z]+$" }}
{{- mulf (toString . | trimSuffix $unit | float64) (get $units $unit | default 1.0) }}
{{- end }}

{{/*
Two executors that take each other's processes, crons or backups. What was so before an upgrade
stays so: a warning in the notes.
*/}}
{{- define "timescaledb.wrongNeighbour" -}}
{{- $name := include "timescaledb.workloadName" . }}
{{- range include "timescaledb.neighbours" . | fromJsonArray }}
{{- if not .before }}
{{- if eq .value "selector" }}
- nameOverride: the Services of {{ $name }} would lead to the pods of {{ .other }}, too. Under two
  parents the same alias takes two of them.
{{- else }}
- {{ .value }} is that of {{ .other }}, too: each database takes one of its own, see README, "Several
  databases".
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{/*
Each `value` that is that of an `other` workload, and whether it was so `before`, as a list in JSON.
The others are those of other releases in the namespace; and those below the same parent, which
leave word in `Release`, since that is one for all.
*/}}
{{- define "timescaledb.neighbours" -}}
{{- $root := . }}
{{- $name := include "timescaledb.workloadName" . }}
{{- $mine := dict "selector" (include "timescaledb.selectorLabels" .) }}
{{- range include "timescaledb.allSettings" (dict "root" . "host" "") | fromYamlArray }}
{{- $value := kindIs "string" .value | ternary .value (toJson .value) }}
{{- $_ := set $mine .name (ternary "" $value (kindIs "invalid" .value)) }}
{{- end }}
{{- $there := include "timescaledb.executors" . | fromJson }}
{{- $siblings := get .Release "timescaledb" | default dict }}
{{- $found := list }}
{{- range $other, $theirs := merge (dict) $siblings $there.others }}
{{- if ne $other $name }}
{{- $sibling := hasKey $siblings $other }}
{{- $shared := dict "mine" $mine "theirs" $theirs | include "timescaledb.shared" | fromJsonArray }}
{{- $before := list }}
{{- $was := get $there.ours $name }}
{{- $were := get (ternary $there.ours $there.others $sibling) $other }}
{{- if and $was $were }}
{{- $before = dict "mine" $was "theirs" $were | include "timescaledb.shared" | fromJsonArray }}
{{- $before = append $before "selector" }}
{{- end }}
{{- range $shared }}
{{- /* Under one parent a prefix for all may have been there before, where nobody can look. */}}
{{- if not (and $sibling (eq . "backup.s3.prefix") (not $root.Release.IsUpgrade)) }}
{{- $found = append $found (dict "value" . "other" $other "before" (has . $before)) }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}
{{- $_ := set $siblings $name $mine }}
{{- $_ := set .Release "timescaledb" $siblings }}
{{- toJson $found }}
{{- end }}

{{/* The settings of the executors in the namespace, by workloads: this release's, and others'. */}}
{{- define "timescaledb.executors" -}}
{{- $found := dict "ours" dict "others" dict }}
{{- $release := .Release.Name }}
{{- $there := include "guards: helm needs to list statefulsets and deployments, or skipGuards=true" . | fromJson }}
{{- range concat $there.StatefulSet $there.Deployment }}
{{- $workload := .metadata }}
{{- $whose := get ($workload.labels | default dict) "app.kubernetes.io/instance" | eq $release }}
{{- range ((.spec.template).spec).containers }}
{{- $settings := dict }}
{{- range .env }}
{{- $_ := set $settings .name (.value | default "") }}
{{- end }}
{{- if hasKey $settings "COLONIES_EXECUTOR_TYPE" }}
{{- $_ := set (get $found (ternary "ours" "others" $whose)) $workload.name $settings }}
{{- end }}
{{- end }}
{{- end }}
{{- toJson $found }}
{{- end }}

{{/* What must not be the same of two executors, `mine` and `theirs`, but is, as a list in JSON. */}}
{{- define "timescaledb.shared" -}}
{{- $mine := .mine }}
{{- $theirs := .theirs }}
{{- $shared := list }}
{{- $colony := true }}
{{- range list "SERVER_HOST" "SERVER_PORT" "COLONY_NAME" "COLONY_ID" }}
{{- $key := printf "COLONIES_%s" . }}
{{- $colony = and $colony (eq (get $mine $key) (get $theirs $key)) }}
{{- end }}
{{- if $colony }}
{{- if eq $mine.COLONIES_EXECUTOR_TYPE $theirs.COLONIES_EXECUTOR_TYPE }}
{{- $shared = append $shared "backup.colonies.executorType" }}
{{- end }}
{{- range $value, $cron := dict "cronName" "BACKUP_CRON" "verifyCronName" "VERIFY_CRON"
    "checkCronName" "CHECK_CRON" }}
{{- $key := printf "%s_NAME" $cron }}
{{- if and (get $mine $cron) (get $theirs $cron) (eq (get $mine $key) (get $theirs $key)) }}
{{- $shared = printf "backup.%s" $value | append $shared }}
{{- end }}
{{- end }}
{{- end }}
{{- $bucket := true }}
{{- range list "AWS_S3_ENDPOINT" "AWS_S3_BUCKET_NAME" "AWS_S3_PREFIX" "DB_DATABASE" }}
{{- $bucket = and $bucket (eq (get $mine .) (get $theirs .)) }}
{{- end }}
{{- if $bucket }}
{{- $shared = append $shared "backup.s3.prefix" }}
{{- end }}
{{- if eq $mine.selector (get $theirs "selector") }}
{{- $shared = append $shared "selector" }}
{{- end }}
{{- toJson $shared }}
{{- end }}
