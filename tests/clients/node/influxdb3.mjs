import { InfluxDBClient, Point } from "@influxdata/influxdb3-client";
import { readJob, valueOf } from "./job.mjs";

const job = await readJob();
const client = new InfluxDBClient({
  host: job.url,
  token: "secret",
  database: job.database,
  writeOptions: { precision: "us", gzipThreshold: job.gzip ? 0 : Number.MAX_SAFE_INTEGER },
});
const points = job.records.map((record) => {
  const point = Point.measurement(job.database).setTimestamp(record.time_us);
  for (const [name, value] of Object.entries(record.tags)) point.setTag(name, value);
  for (const [name, type, text] of record.fields) {
    if (type === "int") point.setIntegerField(name, valueOf(type, text));
    else if (type === "float") point.setFloatField(name, valueOf(type, text));
    else if (type === "bool") point.setBooleanField(name, valueOf(type, text));
    else point.setStringField(name, text);
  }
  return point;
});
await client.write(points, job.database);
await client.close();
