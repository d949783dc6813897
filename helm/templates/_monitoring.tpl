{{- define "timescaledb.wrongMonitoring" -}}
{{- range list "podMonitor" "rules" }}
{{- if and (get ($.Values.monitoring | default dict) .) (not $.Values.backup.metricsPort) }}
- monitoring.{{ . }} takes backup.metricsPort: else there are no metrics.
{{- end }}
{{- end }}
{{- end }}

{{/* How many hours the newest backup may be old, as the executor has it. */}}
{{- define "timescaledb.maxAge" -}}
{{- ternary 26 .Values.backup.checkMaxAge (kindIs "invalid" .Values.backup.checkMaxAge) | int }}
{{- end }}

{{/* Which samples are this release's, wherever they come from: that of its pod. */}}
{{- define "timescaledb.samples" -}}
{{- $pod := ternary "statefulset-[0-9]+" "backup-[a-z0-9]+-[a-z0-9]+" .Values.database.enabled }}
{{- $pod = printf "%s-%s" (include "timescaledb.fullname" .) $pod }}
{{- printf `namespace="%s",pod=~"%s"` .Release.Namespace $pod }}
{{- end }}

{{/*
The alerts of `serve --help`, in that order, of whatever executor. An age has no `for`: it is a fact
at once, and an executor that starts again and again would never be seen for so long. By on (job)
it is the same one after a restart, which has another address.
*/}}
{{- define "timescaledb.alerts" -}}
{{- $hours := include "timescaledb.maxAge" . }}
{{- $days := int .Values.monitoring.maxVerifyDays }}
{{- $restore := int .Values.monitoring.maxRestoreHours }}
{{- $times := ternary "1.2" "2.4" (empty (.Values.backup.age).recipients) }}
- alert: TooOld
  expr: >-
    abs(time() - colonies_backup_newest_timestamp_seconds) > {{ $hours }} * 3600
    unless (colonies_backup_newest_timestamp_seconds == 0 unless on (job)
    max_over_time(colonies_backup_newest_timestamp_seconds[2h] offset {{ max 1 $hours }}h))
  severity: critical
  summary: The newest backup began {{ `{{ $value | humanizeDuration }}` }} ago
  description: >-
    More than {{ $hours }} hours, or as far ahead, by a clock that was wrong. 20,000 days: there is
    none, though the executor was there so long ago. Its log, `check` and `list` say why.
- alert: Failed
  expr: increase(colonies_backup_failures_total[1h]) > 0
  severity: warning
  summary: A process {{ `{{ $labels.function }}` }} failed
  description: The process in Colonies, and the executor's log, say why.
- alert: Doubtful
  expr: colonies_backup_newest_doubtful == 1
  severity: warning
  summary: The newest backup has less than half of the size of the last good one
  description: Was the database emptied? The good backups stay; `list` shows them.
{{- if $days }}
- alert: Unproven
  expr: >-
    abs(time() - colonies_backup_verify_timestamp_seconds) > {{ $days }} * 86400
    unless (colonies_backup_verify_timestamp_seconds == 0 unless on (job)
    max_over_time(colonies_backup_verify_timestamp_seconds[2h] offset {{ $days }}d))
  severity: warning
  summary: No backup was verified for {{ `{{ $value | humanizeDuration }}` }}
  description: >-
    More than {{ $days }} days; 20,000: never, in so many. Is there a verifyCron, and did its last
    process succeed?
{{- end }}
- alert: NotWhole
  expr: colonies_backup_verify_success == 0
  severity: critical
  summary: The last verify found that a backup is not whole
  description: >-
    `list` shows which one. Make another and verify it; do not delete the older ones.
{{- if $restore }}
- alert: RestoreSlow
  expr: sum(colonies_backup_verify_step_seconds) > {{ $restore }} * 3600
  severity: warning
  summary: The last verify took {{ `{{ $value | humanizeDuration }}` }}
  description: A restore takes about as long, which is more than {{ $restore }} hours.
{{- end }}
- alert: DumpWaiting
  expr: colonies_backup_uploads_waiting > 0
  for: 3h
  severity: warning
  summary: A finished dump waits for S3
  description: >-
    The executor uploads it when S3 answers. Its log says what is wrong; do not delete the staging
    volume.
- alert: StagingTooSmall
  expr: >-
    colonies_backup_staging_free_bytes < {{ $times }} * colonies_backup_newest_size_bytes
    unless ignoring (function) colonies_backup_running == 1
  for: 1h
  severity: warning
  summary: The staging volume has no room for the next dump
  description: >-
    {{ `{{ $value | humanize1024 }}B` }} are free: less than {{ $times }} times the newest backup. See
    "Grow a volume" in the chart's README.
- alert: BucketAway
  expr: absent(colonies_backup_bucket_reachable == 1)
  for: 1h
  severity: critical
  summary: Nobody knows which backups are in the bucket
  description: S3 is away, or refuses the executor, or the executor is not there. See its log.
- alert: NotInColony
  expr: colonies_backup_registered * colonies_backup_colonies_reachable == 0
  for: 1h
  severity: warning
  summary: The executor is not in its colony
  description: Colonies is away, or lets the executor do nothing, so nothing starts a backup.
- alert: ExecutorGone
  expr: absent(colonies_backup_info)
  for: 15m
  severity: critical
  summary: No executor answers
  description: Its pod is not there, or Prometheus does not reach it. Nothing backs the database up.
{{- end }}
