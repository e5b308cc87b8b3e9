// Judges documents by a JSON Schema of draft 2020-12: node validate.cjs SCHEMA FILE…, with NODE_PATH at the packages.
// Prints a line for each fault, then how many documents keep the schema.
const { readFileSync } = require("node:fs");
const Ajv = require("ajv/dist/2020");
const addFormats = require("ajv-formats");

const read = (file) => JSON.parse(readFileSync(file, "utf8"));
const ajv = new Ajv({ allErrors: true, strict: true, allowUnionTypes: true, strictRequired: false, strictTypes: false });
addFormats(ajv);

const [schema, ...files] = process.argv.slice(2);
const keeps = ajv.compile(read(schema));
let kept = 0;
for (const file of files) {
  if (keeps(read(file))) {
    kept += 1;
    continue;
  }
  for (const { instancePath, message } of keeps.errors) console.log(`${file}: ${instancePath || "/"} ${message}`);
}
console.log(`${kept} of ${files.length}`);
process.exit(kept === files.length ? 0 : 1);
