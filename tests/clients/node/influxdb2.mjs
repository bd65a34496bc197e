import { InfluxDB, Point } from "@influxdata/influxdb-client";
import { readJob, valueOf } from "./job.mjs";

const job = await readJob();
const api = new InfluxDB({ url: job.url, token: "secret" }).getWriteApi("me", job.database, "us", {
  gzipThreshold: job.gzip ? 0 : Number.MAX_SAFE_INTEGER,
  minRetryDelay: 10,
  maxRetryDelay: 100,
  retryJitter: 1,
});
for (const record of job.records) {
  const point = new Point(job.database).timestamp(record.time_us);
  for (const [name, value] of Object.entries(record.tags)) point.tag(name, value);
  for (const [name, type, written] of record.fields) {
    if (type === "int") point.intField(name, valueOf(type, written));
    else if (type === "float") point.floatField(name, valueOf(type, written));
    else if (type === "bool") point.booleanField(name, valueOf(type, written));
    else point.stringField(name, written);
  }
  api.writePoint(point);
}
await api.flush(true); // with what waits to be repeated, which close would drop
await api.close();
