/** What the gateway tells as it happens. Lost, it is asked again until it answers. */

import { GatewayError } from '../api/errors.ts'
import { call } from '../api/http.ts'
import { events, type ServerEvent } from '../api/sse.ts'
import type { Health, Request, Swarm, Token } from '../api/types.ts'
import { key } from './key.svelte.ts'

/** The gateway sends a comment every 10 seconds: two missed ones are a lost gateway. */
const IDLE_MS = 25_000
const FIRST_WAIT_MS = 500
const LONGEST_WAIT_MS = 8_000

export type LinkState = 'opening' | 'open' | 'lost' | 'locked'

class Live {
  swarm = $state.raw<Swarm | null>(null)
  requests = $state.raw<Request[] | null>(null)
  health = $state.raw<Health | null>(null)
  link = $state<LinkState>('opening')
  /** Why it is lost, for people. */
  reason = $state('')
  /** When the next try is, in this machine's milliseconds. */
  retryAt = $state(0)

  #listeners = new Set<(token: Token) => void>()
  #wake: (() => void) | null = null

  /** Runs for as long as the page is open. */
  async run(): Promise<never> {
    let wait = FIRST_WAIT_MS
    for (;;) {
      try {
        await this.#listen(() => (wait = FIRST_WAIT_MS))
        this.#lost('The gateway closed the connection.')
      } catch (error) {
        if (error instanceof GatewayError && error.status === 401) this.link = 'locked'
        else this.#lost(error instanceof Error ? error.message : String(error))
      }
      await this.#sleep(wait)
      wait = Math.min(wait * 2, LONGEST_WAIT_MS)
    }
  }

  /** Try at once: the key has changed, or a person is impatient. */
  retry(): void {
    this.#wake?.()
  }

  /** Calls `listener` as tokens pass; returns how to stop that. */
  onToken(listener: (token: Token) => void): () => void {
    this.#listeners.add(listener)
    return () => this.#listeners.delete(listener)
  }

  async #listen(opened: () => void): Promise<void> {
    const response = await call('api/events', { headers: { Accept: 'text/event-stream' } })
    if (!response.body) throw new GatewayError('The gateway answered without a body.', response.status)
    this.link = 'open'
    opened()
    for await (const event of events(response.body, IDLE_MS)) this.#take(event)
  }

  #take(event: ServerEvent): void {
    const data: unknown = JSON.parse(event.data)
    if (event.name === 'swarm') this.swarm = data as Swarm
    else if (event.name === 'requests') this.requests = data as Request[]
    else if (event.name === 'health') this.health = data as Health
    else if (event.name === 'token') for (const tell of this.#listeners) tell(data as Token)
  }

  #lost(reason: string): void {
    this.link = 'lost'
    this.reason = reason
  }

  /** A locked gateway is not asked again until there is another key. */
  async #sleep(ms: number): Promise<void> {
    this.retryAt = Date.now() + ms
    await new Promise<void>((resolve) => {
      const timer = this.link === 'locked' && key.asked ? undefined : setTimeout(resolve, ms)
      this.#wake = () => {
        clearTimeout(timer)
        resolve()
      }
    })
    this.#wake = null
  }
}

export const live = new Live()
