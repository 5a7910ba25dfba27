/** Numbers, spans and times as people read them. Pure. */

/** `0–9` for the blocks `[0, 10)`: both ends are served. */
export function blocks(start: number, end: number): string {
  return end - start === 1 ? `${start}` : `${start}–${end - 1}`
}

/** The blocks of a span written `start:end`, or the text itself where it is no span. */
export function spanText(span: string): string {
  const [start, end] = span.split(':').map(Number)
  if (start === undefined || end === undefined || !(start >= 0) || !(end > start)) return span
  return blocks(start, end)
}

/** Milliseconds with the digits that mean something: `0.4 ms`, `12 ms`, `3.2 s`. */
export function ms(value: number | null): string {
  if (value === null || !Number.isFinite(value)) return '–'
  if (value >= 1000) return `${(value / 1000).toFixed(value < 10_000 ? 1 : 0)} s`
  return `${value.toFixed(value < 10 ? 1 : 0)} ms`
}

export function perSecond(value: number | null): string {
  if (value === null || !Number.isFinite(value)) return '–'
  return `${value.toFixed(value < 10 ? 1 : 0)} tok/s`
}

/** Energy of a token with the digits that mean something: `0.42 J/token`, `1.2 J/token`, `15 J/token`. */
export function joules(value: number): string {
  return `${value < 10 ? Number(value.toPrecision(2)) : Math.round(value)} J/token`
}

export function count(value: number): string {
  return value.toLocaleString('en-GB')
}

/** `1 peer`, `3 peers`. */
export function many(value: number, one: string, more = `${one}s`): string {
  return `${count(value)} ${value === 1 ? one : more}`
}

/** `just now`, `40 s ago`, `3 min ago`, `2 h ago`, `5 d ago`; both times in seconds. */
export function ago(then: number, now: number): string {
  const passed = Math.max(0, now - then)
  if (passed < 3) return 'just now'
  if (passed < 60) return `${Math.floor(passed)} s ago`
  if (passed < 3600) return `${Math.floor(passed / 60)} min ago`
  if (passed < 86_400) return `${Math.floor(passed / 3600)} h ago`
  return `${Math.floor(passed / 86_400)} d ago`
}

/** A and B; A, B and C. */
export function list(words: string[]): string {
  if (words.length < 2) return words[0] ?? ''
  return `${words.slice(0, -1).join(', ')} and ${words.at(-1)}`
}
