/** What the gateway says at an address, asked for again and again. */

import { callJson } from '../api/http.ts'

export class Asked<T> {
  /** What it said last. */
  said = $state.raw<T | null>(null)
  /** Why it does not say it now; empty if it does. */
  wrong = $state('')
  #path: string
  #silent: (error: unknown) => boolean

  /**
   * Asks as long as the component is there that makes this.
   *
   * @param silent whether nothing need be shown of an error
   */
  constructor(path: string, everyMs: number, silent: (error: unknown) => boolean = () => false) {
    this.#path = path
    this.#silent = silent
    $effect(() => {
      void this.#ask()
      const timer = setInterval(() => void this.#ask(), everyMs)
      return () => clearInterval(timer)
    })
  }

  async #ask(): Promise<void> {
    try {
      this.said = await callJson<T>(this.#path)
      this.wrong = ''
    } catch (error) {
      this.wrong = this.#silent(error) ? '' : error instanceof Error ? error.message : String(error)
    }
  }
}
