{{- define "searchloop.labels" -}}
app.kubernetes.io/name: searchloop
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .role }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ .root.Chart.Name }}-{{ .root.Chart.Version }}
{{- end }}

{{- define "searchloop.selector" -}}
app.kubernetes.io/name: searchloop
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .role }}
{{- end }}

{{- define "searchloop.image" -}}
{{- with .Values.image }}{{ .repository }}{{ if .digest }}@{{ .digest }}{{ else }}:{{ .tag | default $.Chart.AppVersion }}{{ end }}{{ end }}
{{- end }}

{{- define "searchloop.bootstrap" -}}
{{- if .Values.kafka.bootstrap }}{{ .Values.kafka.bootstrap }}
{{- else }}{{ required "kafka.bootstrap: expected the addresses of your brokers, or strimzi.cluster; got neither" .Values.strimzi.cluster }}-kafka-bootstrap.{{ .Release.Namespace }}.svc:{{ .Values.strimzi.port }}{{ end }}
{{- end }}

{{- define "searchloop.engine" -}}
{{- if .Values.elasticsearch.url }}{{ .Values.elasticsearch.url }}
{{- else if .Values.eck.enabled }}https://{{ .Release.Name }}-es-http.{{ .Release.Namespace }}.svc:9200
{{- else }}{{ fail "elasticsearch.url: expected the address of your Elasticsearch, or eck.enabled; got neither" }}{{ end }}
{{- end }}

{{/* The name of the Kafka user of a role: with Strimzi, also of its secret. */}}
{{- define "searchloop.user" -}}
{{- $given := index .root.Values.kafka.users .user }}
{{- if $given.name }}{{ $given.name }}
{{- else if .root.Values.strimzi.users }}{{ .root.Release.Name }}-{{ .user }}
{{- else }}{{ .user }}{{ end }}
{{- end }}

{{- define "searchloop.userSecret" -}}
{{- $given := index .root.Values.kafka.users .user }}
{{- if $given.secret }}{{ $given.secret }}
{{- else if .root.Values.strimzi.users }}{{ include "searchloop.user" . }}
{{- else }}{{ fail (printf "kafka.users.%s.secret: expected a secret with the key `password`, or strimzi.users; got neither" .user) }}{{ end }}
{{- end }}

{{- define "searchloop.kafkaCa" -}}
{{- if .Values.kafka.caSecret.name }}{{ .Values.kafka.caSecret.name }}
{{- else if .Values.strimzi.cluster }}{{ .Values.strimzi.cluster }}-cluster-ca-cert{{ end }}
{{- end }}

{{- define "searchloop.engineCa" -}}
{{- if .Values.elasticsearch.caSecret.name }}{{ .Values.elasticsearch.caSecret.name }}
{{- else if .Values.eck.enabled }}{{ .Release.Name }}-es-http-certs-public{{ end }}
{{- end }}

{{/* The secret for Elasticsearch of a role, as JSON: name, key and username. */}}
{{- define "searchloop.engineSecret" -}}
{{- $given := .root.Values.elasticsearch }}
{{- if and (eq .role "environment") $given.environmentSecret.name }}
{{- dict "name" $given.environmentSecret.name "key" $given.environmentSecret.key "username" "" | toJson }}
{{- else if $given.secret.name }}
{{- dict "name" $given.secret.name "key" $given.secret.key "username" $given.username | toJson }}
{{- else if .root.Values.eck.enabled }}
{{- dict "name" (printf "%s-es-elastic-user" .root.Release.Name) "key" "elastic" "username" "elastic" | toJson }}
{{- else }}{{ fail "elasticsearch.secret.name: expected a secret with an API key, got none" }}{{ end }}
{{- end }}

{{/* Restricted Pod Security: everything that its admission asks of a pod and of a container, and a root that is read-only. */}}
{{- define "searchloop.podSecurity" -}}
runAsNonRoot: true
runAsUser: 1000
runAsGroup: 1000
fsGroup: 1000
fsGroupChangePolicy: OnRootMismatch
seccompProfile: { type: RuntimeDefault }
{{- end }}

{{- define "searchloop.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
capabilities: { drop: [ALL] }
{{- end }}

{{/* All of a pod's spec but its containers. shared: the pod uses the one home. */}}
{{- define "searchloop.pod" -}}
automountServiceAccountToken: false
enableServiceLinks: false # Their variables begin with SEARCHLOOP_ too, and would be read as settings.
serviceAccountName: {{ .root.Values.store.serviceAccount | default (printf "%s-searchloop" .root.Release.Name) }}
{{- with .root.Values.imagePullSecrets }}
imagePullSecrets: {{ toYaml . | nindent 2 }}
{{- end }}
securityContext: {{ include "searchloop.podSecurity" (dict) | nindent 2 }}
{{- if .shared }}
affinity: # The home is a volume of one node, and all its pods follow it there.
  podAffinity:
    requiredDuringSchedulingIgnoredDuringExecution:
      - topologyKey: kubernetes.io/hostname
        labelSelector:
          matchLabels: { searchloop.io/home: {{ .root.Release.Name | quote }} }
{{- end }}
{{- with .place }}
{{- with .nodeSelector }}
nodeSelector: {{ toYaml . | nindent 2 }}
{{- end }}
{{- with .tolerations }}
tolerations: {{ toYaml . | nindent 2 }}
{{- end }}
{{- end }}
volumes:
  - name: home
    {{- if .shared }}
    persistentVolumeClaim: { claimName: {{ .root.Values.home.existingClaim | default (printf "%s-home" .root.Release.Name) }} }
    {{- else }}
    emptyDir: {}
    {{- end }}
  - name: tmp
    emptyDir: {}
  - name: config
    configMap: { name: {{ .root.Release.Name }}-config }
  - name: kafka
    projected:
      defaultMode: 0440
      sources:
        - secret:
            name: {{ include "searchloop.userSecret" . }}
            items: [{ key: password, path: password }]
        {{- with include "searchloop.kafkaCa" .root }}
        - secret:
            name: {{ . }}
            items: [{ key: {{ $.root.Values.kafka.caSecret.key }}, path: ca.crt }]
        {{- end }}
  {{- if .engine }}
  {{- $secret := include "searchloop.engineSecret" . | fromJson }}
  - name: elasticsearch
    projected:
      defaultMode: 0440
      sources:
        - secret:
            name: {{ $secret.name }}
            items: [{ key: {{ $secret.key }}, path: secret }]
        {{- with include "searchloop.engineCa" .root }}
        - secret:
            name: {{ . }}
            items: [{ key: {{ $.root.Values.elasticsearch.caSecret.key }}, path: ca.crt }]
        {{- end }}
  {{- end }}
  {{- with .token }}
  - name: token
    secret:
      secretName: {{ .name }}
      defaultMode: 0440
      items: [{ key: {{ .key }}, path: token }]
  {{- end }}
  {{- with .volumes }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end }}

{{/* Image, security, variables and mounts of a container of searchloop. */}}
{{- define "searchloop.container" -}}
name: {{ .role }}
image: {{ include "searchloop.image" .root }}
imagePullPolicy: {{ .root.Values.image.pullPolicy }}
securityContext: {{ include "searchloop.containerSecurity" . | nindent 2 }}
resources: {{ toYaml .resources | nindent 2 }}
{{- with .root.Values.store.secret }}
envFrom: [{ secretRef: { name: {{ . }} } }]
{{- end }}
env:
  - { name: HOME, value: /tmp }
  - { name: PYTHONDONTWRITEBYTECODE, value: "1" }
  - { name: OMP_NUM_THREADS, value: "1" }
  - { name: SEARCHLOOP_HOME, value: /state }
  - { name: SEARCHLOOP_CONFIG, value: /etc/searchloop/searchloop.toml }
  - { name: SEARCHLOOP_KAFKA__BOOTSTRAP, value: {{ include "searchloop.bootstrap" .root | quote }} }
  - { name: SEARCHLOOP_KAFKA__SECURITY_PROTOCOL, value: SASL_SSL }
  - { name: SEARCHLOOP_KAFKA__SASL_MECHANISM, value: {{ .root.Values.kafka.saslMechanism }} }
  - { name: SEARCHLOOP_KAFKA__SASL_USERNAME, value: {{ include "searchloop.user" . }} }
  - { name: SEARCHLOOP_KAFKA__SASL_PASSWORD_FILE, value: /run/secrets/kafka/password }
  {{- if include "searchloop.kafkaCa" .root }}
  - { name: SEARCHLOOP_KAFKA__SSL_CAFILE, value: /run/secrets/kafka/ca.crt }
  {{- end }}
  - { name: SEARCHLOOP_KAFKA__PARTITIONS, value: {{ .root.Values.partitions | quote }} }
  - { name: SEARCHLOOP_KAFKA__REPLICATION, value: {{ .root.Values.replication | quote }} }
  - { name: SEARCHLOOP_KAFKA__LIVE_RETENTION_HOURS, value: {{ .root.Values.liveRetentionHours | quote }} }
  {{- /* Without an address, every verb would start an Elasticsearch of its own. */}}
  - { name: SEARCHLOOP_ELASTICSEARCH__URL, value: {{ include "searchloop.engine" .root | quote }} }
  {{- if .engine }}
  {{- $secret := include "searchloop.engineSecret" . | fromJson }}
  {{- if $secret.username }}
  - { name: SEARCHLOOP_ELASTICSEARCH__USERNAME, value: {{ $secret.username }} }
  - { name: SEARCHLOOP_ELASTICSEARCH__PASSWORD_FILE, value: /run/secrets/elasticsearch/secret }
  {{- else }}
  - { name: SEARCHLOOP_ELASTICSEARCH__API_KEY_FILE, value: /run/secrets/elasticsearch/secret }
  {{- end }}
  {{- if include "searchloop.engineCa" .root }}
  - { name: SEARCHLOOP_ELASTICSEARCH__CA_CERTS, value: /run/secrets/elasticsearch/ca.crt }
  {{- end }}
  {{- end }}
  {{- with .root.Values.store.url }}
  - { name: SEARCHLOOP_STORE__URL, value: {{ . | quote }} }
  {{- end }}
  {{- with .env }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
volumeMounts:
  - { name: home, mountPath: /state }
  - { name: tmp, mountPath: /tmp }
  - { name: config, mountPath: /etc/searchloop, readOnly: true }
  - { name: kafka, mountPath: /run/secrets/kafka, readOnly: true }
  {{- if .engine }}
  - { name: elasticsearch, mountPath: /run/secrets/elasticsearch, readOnly: true }
  {{- end }}
  {{- if .token }}
  - { name: token, mountPath: /run/secrets/token, readOnly: true }
  {{- end }}
  {{- with .mounts }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end }}

{{/* Probes of a worker. It has no port: each of its polls touches a file. */}}
{{- define "searchloop.workerProbes" -}}
lifecycle: # /tmp outlives a restart of the container, and the file of the process before says nothing of this one.
  postStart: { exec: { command: [rm, -f, /tmp/alive] } }
startupProbe: # Its first poll comes when its models are loaded.
  exec: { command: [test, -e, /tmp/alive] }
  periodSeconds: 5
  failureThreshold: 120
readinessProbe:
  exec: { command: [test, -e, /tmp/alive] }
  periodSeconds: 10
livenessProbe: # 5 minutes are kafka.poll_interval_seconds_max: by then Kafka has given its partitions away.
  exec: { command: [sh, -c, 'test -n "$(find /tmp/alive -mmin -5)"'] }
  periodSeconds: 60
  timeoutSeconds: 5
  failureThreshold: 2
{{- end }}

{{- define "searchloop.podLabels" -}}
{{ include "searchloop.labels" . }}
{{- if .shared }}
searchloop.io/home: {{ .root.Release.Name | quote }}
{{- end }}
{{- if .engine }}
searchloop.io/engine: "true"
{{- end }}
{{- end }}
