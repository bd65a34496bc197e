import { InfluxDB, Point } from "@influxdata/influxdb-client";
import { readJob, valueOf } from "./job.mjs";

const job = await readJob();
let api;
// The client drops at its close what failed and waits to be repeated: everything has to be written before.
const written = new Promise((resolve, reject) => {
  let left = job.records.length;
  api = new InfluxDB({ url: job.url, token: "secret" }).getWriteApi("me", job.database, "us", {
    gzipThreshold: job.gzip ? 0 : Number.MAX_SAFE_INTEGER,
    minRetryDelay: 10,
    maxRetryDelay: 100,
    retryJitter: 1,
    writeSuccess: (lines) => {
      left -= lines.length;
      if (left === 0) resolve();
    },
    writeFailed: (error) => {
      if (error.statusCode < 500) reject(error);
    },
  });
});
for (const record of job.records) {
  const point = new Point(job.database).timestamp(record.time_us);
  for (const [name, value] of Object.entries(record.tags)) point.tag(name, value);
  for (const [name, type, text] of record.fields) {
    if (type === "int") point.intField(name, valueOf(type, text));
    else if (type === "float") point.floatField(name, valueOf(type, text));
    else if (type === "bool") point.booleanField(name, valueOf(type, text));
    else point.stringField(name, text);
  }
  api.writePoint(point);
}
await api.flush();
await written;
await api.close();
