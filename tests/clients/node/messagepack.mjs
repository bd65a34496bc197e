// MessagePack over fetch. `big` as an argument packs 64-bit integers from BigInt, and then other large numbers as floats.
import { gzipSync } from "node:zlib";
import { encode } from "@msgpack/msgpack";
import { readJob, valueOf } from "./job.mjs";

const job = await readJob();
const big = process.argv[2] === "big";
const columns = { time: job.records.map((record) => Number(record.time_us)) };
for (const record of job.records) {
  for (const name of Object.keys(record.tags)) columns[name] ??= job.records.map((each) => each.tags[name] ?? null);
  for (const [name] of record.fields) {
    columns[name] ??= job.records.map((each) => {
      const field = each.fields.find(([other]) => other === name);
      return field === undefined ? null : valueOf(field[1], field[2]);
    });
  }
}
const packed = encode({ m: job.database, columns }, { useBigInt64: big });
const answer = await fetch(`${job.url}/write/v2/msgpack`, {
  method: "POST",
  body: job.gzip ? gzipSync(packed) : packed,
  headers: { "x-arc-database": job.database, ...(job.gzip ? { "Content-Encoding": "gzip" } : {}) },
});
if (answer.status !== 202) throw new Error(`${answer.status}: ${await answer.text()}`);
