#!/bin/sh
# Load arcpipe and its peers alike, each in its turn alone, with the formats that all of them take. Arguments go to the benchmarks:
#
#     benchmarks/peers.sh --seconds 6 --warmup 2 --runs 5 --format all --data-dir /mnt/nvme/bench --json peers.json
#
# Of Debian: apt-get install influxdb victoria-metrics (or unpack the packages, and set BIN to their usr/bin).
# Of Maven:  mvn dependency:get -Dartifact=org.questdb:questdb:9.0.1; needs Java 17. Without its jar, QuestDB is left out.
# Of Go:     ARC is the command of an Arc that serves at port 18010 with its files in {dir}; without it, Arc is left out.
set -eu
BIN=${BIN:-/usr/bin}
QUESTDB=${QUESTDB:-$HOME/.m2/repository/org/questdb/questdb/9.0.1/questdb-9.0.1.jar}
PYTHON=${PYTHON:-.venv/bin/python}
python=$(command -v "$PYTHON")
case $python in /*) ;; *) python=$PWD/$python ;; esac

arcpipe="env PYTHONPATH=$PWD ARCPIPE_SERVER_PORT=18000 ARCPIPE_WAL_DIR={dir}/wal ARCPIPE_STORAGE_URL=file://{dir}/lake $python -m arcpipe serve"
influxdb="env INFLUXDB_META_DIR={dir}/meta INFLUXDB_DATA_DIR={dir}/data INFLUXDB_DATA_WAL_DIR={dir}/wal \
INFLUXDB_HTTP_BIND_ADDRESS=127.0.0.1:18086 INFLUXDB_BIND_ADDRESS=127.0.0.1:18088 INFLUXDB_HTTP_LOG_ENABLED=false \
INFLUXDB_REPORTING_DISABLED=true $BIN/influxd run"
victoria="$BIN/victoria-metrics -storageDataPath={dir}/data -httpListenAddr=127.0.0.1:18428 -retentionPeriod=100y"
questdb="env QDB_HTTP_BIND_TO=127.0.0.1:19000 QDB_HTTP_MIN_ENABLED=false QDB_PG_ENABLED=false QDB_LINE_TCP_ENABLED=false \
QDB_TELEMETRY_ENABLED=false java -p $QUESTDB -m io.questdb/io.questdb.ServerMain -d {dir}"

set -- "$@" \
	--target 'arcpipe (on disk)=http://127.0.0.1:18000' --protocol influx1 --command "$arcpipe" \
	--target 'InfluxDB (on disk)=http://127.0.0.1:18086' --protocol influx1 --command "$influxdb" \
	--target 'VictoriaMetrics (in memory)=http://127.0.0.1:18428' --protocol influx1 --command "$victoria"
if [ -e "$QUESTDB" ]; then
	set -- "$@" --target 'QuestDB (page cache)=http://127.0.0.1:19000' --protocol influx2 --command "$questdb"
fi
if [ -n "${ARC:-}" ]; then
	set -- "$@" --target 'Arc (in memory)=http://127.0.0.1:18010' --protocol influx2 --command "$ARC"
fi
exec "$python" -m benchmarks "$@"
