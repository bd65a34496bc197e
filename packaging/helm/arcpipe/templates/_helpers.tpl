{{- define "arcpipe.fullname" -}}
{{- if contains .Chart.Name .Release.Name }}{{ .Release.Name | trunc 50 | trimSuffix "-" }}{{ else }}{{ printf "%s-%s" .Release.Name .Chart.Name | trunc 50 | trimSuffix "-" }}{{ end }}
{{- end }}

{{- define "arcpipe.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "arcpipe.labels" -}}
{{ include "arcpipe.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- define "arcpipe.serviceAccount" -}}
{{- if .Values.serviceAccount.create }}{{ .Values.serviceAccount.name | default (include "arcpipe.fullname" .) }}{{ else }}{{ .Values.serviceAccount.name | default "default" }}{{ end }}
{{- end }}

{{- define "arcpipe.image" -}}
{{- if .Values.image.digest }}{{ printf "%s@%s" .Values.image.repository .Values.image.digest }}{{ else }}{{ printf "%s:%s" .Values.image.repository (.Values.image.tag | default .Chart.AppVersion) }}{{ end }}
{{- end }}

{{/* A quantity of Kubernetes in whole MiB. */}}
{{- define "arcpipe.mebibytes" -}}
{{- $text := toString . -}}
{{- $number := regexFind "^[0-9]+(\\.[0-9]+)?" $text | float64 -}}
{{- $unit := regexReplaceAll "^[0-9.]+" $text "" -}}
{{- $bytes := dict "" 1.0 "k" 1e3 "M" 1e6 "G" 1e9 "T" 1e12 "Ki" 1024.0 "Mi" 1048576.0 "Gi" 1073741824.0 "Ti" 1099511627776.0 -}}
{{- if not (hasKey $bytes $unit) }}{{ fail (printf "%q is no size: write it as 2Gi or 500Mi" $text) }}{{ end -}}
{{- divf (mulf $number (get $bytes $unit)) 1048576.0 | floor | int64 -}}
{{- end }}

{{/* A value of TOML. Helm reads every number as a float: whole ones become integers again. */}}
{{- define "arcpipe.toml" -}}
{{- if kindIs "map" . -}}
{ {{- range $at, $key := keys . | sortAlpha }}{{ if $at }},{{ end }} {{ $key | quote }} = {{ include "arcpipe.toml" (get $ $key) }}{{ end }} }
{{- else if kindIs "slice" . -}}
[{{ range $at, $one := . }}{{ if $at }}, {{ end }}{{ include "arcpipe.toml" $one }}{{ end }}]
{{- else if kindIs "float64" . -}}
{{ if eq (floor .) . }}{{ int64 . }}{{ else }}{{ toString . }}{{ end }}
{{- else if kindIs "string" . -}}
{{ toJson . }}
{{- else if kindIs "invalid" . -}}
{{ fail "a setting under config has no value" }}
{{- else -}}
{{ toString . }}
{{- end -}}
{{- end }}

{{/* A setting, or its default in arcpipe: a list of the values, the section, the key and the default. */}}
{{- define "arcpipe.setting" -}}
{{- $section := get (index . 0) (index . 1) | default dict -}}
{{- $value := get $section (index . 2) -}}
{{- if kindIs "invalid" $value }}{{ index . 3 }}{{ else if kindIs "string" $value }}{{ if $value }}{{ $value }}{{ else }}{{ index . 3 }}{{ end }}{{ else }}{{ include "arcpipe.toml" $value }}{{ end -}}
{{- end }}

{{/* MiB of the volume that a node may fill: docs/sizing.md has the same sum. */}}
{{- define "arcpipe.diskMebibytes" -}}
{{- $config := .Values.config -}}
{{- $segment := include "arcpipe.setting" (list $config "wal" "max_size_mb" 100) | int64 -}}
{{- $workers := include "arcpipe.setting" (list $config "server" "workers" 0) | int64 -}}
{{- $sum := include "arcpipe.setting" (list $config "wal" "max_backlog_mb" 20480) | int64 -}}
{{- $sum = add $sum (mul 2 $workers $segment) -}}
{{- $sum = add $sum (mul $segment (include "arcpipe.setting" (list $config "wal" "free_segments" 6) | int64)) -}}
{{- $sum = add $sum (mul 2 (include "arcpipe.setting" (list $config "uploader" "batch_mb" 512) | int64)) -}}
{{- add $sum (include "arcpipe.setting" (list $config "wal" "min_free_mb" 512) | int64) -}}
{{- end }}

{{/* MiB of memory that a node may take. */}}
{{- define "arcpipe.memoryMebibytes" -}}
{{- $config := .Values.config -}}
{{- $workers := include "arcpipe.setting" (list $config "server" "workers" 0) | int64 -}}
{{- $inflight := include "arcpipe.setting" (list $config "server" "max_inflight_mb" 256) | int64 -}}
{{- $sum := add 100 600 (mul $workers (add 150 $inflight)) -}}
{{- if eq (include "arcpipe.setting" (list $config "compaction" "enabled" "false")) "true" -}}
{{- $sum = add $sum (include "arcpipe.setting" (list $config "compaction" "memory_mb" 600) | int64) -}}
{{- end -}}
{{- if ne (include "arcpipe.setting" (list $config "tables" "format" "none")) "none" }}{{ $sum = add $sum 400 }}{{ end -}}
{{- $sum -}}
{{- end }}

{{/* Seconds that a start may take. */}}
{{- define "arcpipe.startupSeconds" -}}
{{- $config := .Values.config -}}
{{- if .Values.startupSeconds -}}
{{ int64 .Values.startupSeconds }}
{{- else -}}
{{- $segment := include "arcpipe.setting" (list $config "wal" "max_size_mb" 100) | int64 -}}
{{- $workers := include "arcpipe.setting" (list $config "server" "workers" 0) | int64 -}}
{{ add 120 (div (mul 2 $workers $segment) 20) }}
{{- end -}}
{{- end }}

{{- define "arcpipe.refuse" -}}
{{- $config := .Values.config -}}
{{- $own := dict "server" (list "host" "port" "paths" "listeners" "tls_cert" "tls_key") "wal" (list "dir") "auth" (list "tokens_file" "enabled") "shutdown" (list "delay_seconds") -}}
{{- range $section, $keys := $own -}}
{{- range $key := $keys -}}
{{- if hasKey (get $config $section | default dict) $key }}{{ fail (printf "config.%s.%s is set by the chart itself: leave it out of config" $section $key) }}{{ end -}}
{{- end -}}
{{- end -}}
{{- $url := include "arcpipe.setting" (list $config "storage" "url" "") -}}
{{- if not $url }}{{ fail "config.storage.url is needed: where the Parquet files go, such as s3://bucket/prefix" }}{{ end -}}
{{- if not (regexMatch "^(s3|gs|az)://" $url) }}{{ fail (printf "config.storage.url is %q: a pod would lose what is on its own disk. Use s3://bucket/prefix, gs://bucket/prefix or az://container/prefix" $url) }}{{ end -}}
{{- if not (and .Values.tokensSecretName true) -}}
{{- if ne (include "arcpipe.setting" (list $config "auth" "allow_anonymous" "false")) "true" }}{{ fail "a node that listens for others needs tokens: set tokensSecretName, or config.auth.allow_anonymous=true if the network itself decides who may write" }}{{ end -}}
{{- end -}}
{{- $workers := include "arcpipe.setting" (list $config "server" "workers" 0) | int64 -}}
{{- if lt $workers 1 }}{{ fail "config.server.workers has to be a number from 1: the chart adds up the disk and the memory that they need" }}{{ end -}}
{{- if ne (include "arcpipe.setting" (list $config "wal" "enabled" "true")) "true" }}{{ fail "config.wal.enabled=false would lose records with each pod that ends: this chart is for the WAL" }}{{ end -}}
{{- $needed := include "arcpipe.diskMebibytes" . | int64 -}}
{{- $size := include "arcpipe.mebibytes" .Values.persistence.size | int64 -}}
{{- $usable := div (mul $size 95) 100 -}}
{{- if lt $usable $needed }}{{ fail (printf "persistence.size=%s has %d MiB for files, and the WAL may need %d MiB: its disk would be full before wal.max_backlog_mb is. Take %d Gi or more, or lower config.wal.max_backlog_mb (docs/sizing.md)" (toString .Values.persistence.size) $usable $needed (add 1 (div (div (mul $needed 100) 95) 1024))) }}{{ end -}}
{{- with (.Values.resources.limits | default dict).memory -}}
{{- $memory := include "arcpipe.memoryMebibytes" $ | int64 -}}
{{- if lt (include "arcpipe.mebibytes" . | int64) $memory }}{{ fail (printf "resources.limits.memory=%s is less than the %d MiB that a node may need: it would be killed under load, again after each start. Raise it, or lower config.server.workers or config.server.max_inflight_mb (docs/sizing.md)" (toString .) $memory) }}{{ end -}}
{{- end -}}
{{- $tables := get $config "tables" | default dict -}}
{{- if eq (include "arcpipe.setting" (list $config "tables" "format" "none")) "iceberg" -}}
{{- if eq (include "arcpipe.setting" (list $tables "iceberg" "catalog" "sqlite")) "sqlite" }}{{ fail "config.tables.iceberg.catalog=sqlite is a catalogue for one node with a lake on its disk: take rest, postgresql or glue" }}{{ end -}}
{{- end -}}
{{- if and .Values.podDisruptionBudget.enabled (eq (int64 .Values.replicaCount) 1) (eq (toString .Values.podDisruptionBudget.maxUnavailable) "0") }}{{ fail "one node with podDisruptionBudget.maxUnavailable=0 can never be moved" }}{{ end -}}
{{- end }}
