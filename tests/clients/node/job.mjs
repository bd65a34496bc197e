// The job that every program here gets on its standard input:
// {url, database, gzip, records: [{time_us, tags: {name: text}, fields: [[name, type, text]]}]}.
import { text } from "node:stream/consumers";

export async function readJob() {
  return JSON.parse(await text(process.stdin));
}

// The value of a field as JavaScript has it: integers beyond 2^53 are BigInt.
export function valueOf(type, written) {
  switch (type) {
    case "int":
      return Number.isSafeInteger(Number(written)) ? Number(written) : BigInt(written);
    case "float":
      return written === "nan" ? NaN : Number(written);
    case "bool":
      return written === "True";
    default:
      return written;
  }
}
