/** Server-sent events out of a byte stream: `EventSource` cannot send the Authorization header. */

export interface ServerEvent {
  name: string
  data: string
}

/** Longest event that is taken, in characters: a swarm of a few thousand peers is below it. */
export const MAX_EVENT = 8_000_000

/** Takes text in any pieces and gives the events that are complete. No I/O. */
export class EventParser {
  #rest = ''
  #name = ''
  #data: string[] = []
  #size = 0

  push(text: string): ServerEvent[] {
    const lines = (this.#rest + text).split(/\r\n|\n|\r(?!$)/)
    this.#rest = lines.pop() ?? ''
    const events: ServerEvent[] = []
    for (const line of lines) {
      const event = this.#line(line)
      if (event) events.push(event)
    }
    if (this.#rest.length + this.#size > MAX_EVENT) throw new Error('an event of the gateway is too long')
    return events
  }

  #line(line: string): ServerEvent | null {
    if (line === '') return this.#end()
    const colon = line.indexOf(':')
    if (colon === 0) return null // a comment: keep-alive
    const field = colon < 0 ? line : line.slice(0, colon)
    const value = colon < 0 ? '' : line.slice(colon + (line[colon + 1] === ' ' ? 2 : 1))
    if (field === 'event') this.#name = value
    if (field === 'data') {
      this.#data.push(value)
      this.#size += value.length
    }
    return null
  }

  #end(): ServerEvent | null {
    const event = this.#data.length ? { name: this.#name || 'message', data: this.#data.join('\n') } : null
    this.#name = ''
    this.#data = []
    this.#size = 0
    return event
  }
}

/** The events of a response's body, until it ends or nothing, not even a comment, came for `idleMs`. */
export async function* events(body: ReadableStream<Uint8Array>, idleMs: number): AsyncGenerator<ServerEvent> {
  const parser = new EventParser()
  const decoder = new TextDecoder()
  const reader = body.getReader()
  try {
    for (;;) {
      const { value, done } = await withDeadline(reader.read(), idleMs)
      if (done) return
      yield* parser.push(decoder.decode(value, { stream: true }))
    }
  } finally {
    // Also frees the connection when the reader of these events has gone.
    await reader.cancel().catch(() => undefined)
  }
}

async function withDeadline<T>(promise: Promise<T>, ms: number): Promise<T> {
  let timer: ReturnType<typeof setTimeout> | undefined
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(new Error(`nothing came for ${ms / 1000} seconds`)), ms)
  })
  try {
    return await Promise.race([promise, late])
  } finally {
    clearTimeout(timer)
  }
}
