// Judges what KEDA and the Prometheus operator add to Kubernetes, by their own schemas:
// node deploy/local/schemas.mjs NODE_PROJECT < resources as a JSON list
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { pathToFileURL } from "node:url";

const [, , project] = process.argv;
const packages = join(project, "node_modules");
const documents = JSON.parse(readFileSync(0, "utf8"));

// What the schemas of Kubernetes itself do not know.
const models = {
  "keda.sh/v1alpha1": "@kubernetes-models/keda/keda.sh/v1alpha1",
  "monitoring.coreos.com/v1": "@kubernetes-models/prometheus-operator/monitoring.coreos.com/v1",
};

async function judge() {
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

try {
  await judge();
} catch (fault) {
  console.error(`schemas: ${fault.message}`);
  process.exit(1);
}
