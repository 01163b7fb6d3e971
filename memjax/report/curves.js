// Reads the loss curves that the page holds, once they are asked for. They are 16-bit numbers between
// the smallest and the largest loss of a run, as differences from time to time, the low bytes of all
// before the high bytes of all, compressed by gzip.
window.memjaxCurves = (() => {
  let found
  const bytes = (name) => {
    const text = atob(document.getElementById(name).textContent.trim())
    return Uint8Array.from(text, (letter) => letter.charCodeAt(0))
  }
  const numbers = (name) => new Float64Array(bytes(name).buffer)
  async function open() {
    const times = numbers("curve-times"), low = numbers("curve-low"), high = numbers("curve-high")
    const opened = new Blob([bytes("curve-data")]).stream()
      .pipeThrough(new DecompressionStream("gzip"))
    const halves = new Uint8Array(await new Response(opened).arrayBuffer())
    const size = halves.length / 2
    function read(run) {
      const found = [[], []]
      let code = 0
      for (let k = 0; k < times.length; k++) {
        const place = run * times.length + k
        code = (code + halves[place] + 256 * halves[size + place]) % 65536
        if (code === 65535) continue
        found[0].push(times[k])
        found[1].push(low[run] + code / 65534 * (high[run] - low[run]))
      }
      return found
    }
    return {read}
  }
  return () => found ??= open()
})()
