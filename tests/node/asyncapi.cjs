// Judges an AsyncAPI document by the project's own parser: node asyncapi.cjs FILE, with NODE_PATH at the packages.
// Errors and warnings are faults; what is of taste (severity info and hint) is printed. Ends with a line that counts.
const { readFileSync } = require("node:fs");
const { Parser } = require("@asyncapi/parser");

const SEVERITIES = ["error", "warning", "information", "hint"];

async function judge(file) {
  const { document, diagnostics } = await new Parser().parse(readFileSync(file, "utf8"));
  for (const { severity, code, message, path } of diagnostics) {
    console.log(`${SEVERITIES[severity]}: /${path.join("/")}: ${message} (${code})`);
  }
  if (!document || diagnostics.some(({ severity }) => severity <= 1)) process.exit(1);
  const examples = document.messages().all().flatMap((message) => message.examples().all());
  console.log(
    `AsyncAPI ${document.version()}: ${document.channels().all().length} channels, ` +
      `${document.operations().all().length} operations, ${examples.length} examples`,
  );
}

judge(process.argv[2]);
