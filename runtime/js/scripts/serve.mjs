// Serve the files of a folder on 127.0.0.1.
import { createReadStream, statSync } from "node:fs";
import { createServer } from "node:http";
import { extname, join, normalize } from "node:path";

const TYPES = { ".html": "text/html", ".js": "text/javascript", ".mjs": "text/javascript", ".wasm": "application/wasm", ".json": "application/json" };

/** Serve a folder; `pages` holds what further paths give: text, or a folder behind a path that ends in a slash. */
export function served(root, pages = {}) {
  const server = createServer((request, response) => {
    const path = decodeURIComponent(new URL(request.url, "http://x").pathname);
    if (typeof pages[path] === "string") {
      response.writeHead(200, { "content-type": "text/html" }).end(pages[path]);
      return;
    }
    const [prefix, folder] = Object.entries(pages).find(([each, value]) => typeof value === "object" && path.startsWith(each)) ?? ["/", { folder: root }];
    const file = normalize(join(folder.folder, path.slice(prefix.length)));
    const isFile = file.startsWith(folder.folder) && statSync(file, { throwIfNoEntry: false })?.isFile();
    if (!isFile) {
      response.writeHead(404).end();
      return;
    }
    response.writeHead(200, { "content-type": TYPES[extname(file)] ?? "application/octet-stream" });
    createReadStream(file).pipe(response);
  });
  return new Promise((resolve) => {
    server.listen(0, "127.0.0.1", () => {
      resolve({ url: `http://127.0.0.1:${server.address().port}/`, close: () => server.close() });
    });
  });
}
