// Pages from the file system may not start workers. There, the search runs in a hidden frame with a worker's interface.
if (location.protocol === "file:") {
  window.IFrameWorker = class extends EventTarget {
    constructor(url) {
      super();
      this.frame = document.createElement("iframe");
      this.frame.hidden = true;
      this.frame.srcdoc = `<script>
        postMessage = data => frameElement.worker.dispatchEvent(new MessageEvent("message", { data }));
        importScripts = (...urls) => Promise.all(urls.map(url => new Promise((resolve, reject) => {
          const script = Object.assign(document.createElement("script"), { src: url, async: false });
          script.onload = resolve;
          script.onerror = reject;
          document.head.append(script);
        })));
      </script><script src="${url}"></script>`;
      this.frame.worker = this;
      this.loaded = new Promise(resolve => { this.frame.onload = resolve; });
      document.body.append(this.frame);
    }
    postMessage(data) {
      this.loaded.then(() => this.frame.contentWindow.dispatchEvent(new MessageEvent("message", { data })));
    }
    terminate() {
      this.frame.remove();
    }
  };
  window.Worker = window.IFrameWorker;
}
