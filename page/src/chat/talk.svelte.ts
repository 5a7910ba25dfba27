/** The conversations of this browser, and the answer that is coming in. Goes on while another view is open. */

import type { Hop, Swarm } from '../api/types.ts'
import { live } from '../state/live.svelte.ts'
import { ask, type Question } from './ask.ts'
import { saidTo } from './attach.ts'
import type { Piece } from './chunks.ts'
import { forked, switched } from './branches.ts'
import { alone, bounded, DEFAULTS, restored, titleOf, type Answered, type Conversation, type Message, type Settings } from './keep.ts'
import { merged } from './transfer.ts'

const STORED = 'shoal.conversations'
const SAVE_EVERY_MS = 1000

class Talk {
  conversations = $state<Conversation[]>(restored(localStorage.getItem(STORED)))
  openId = $state<string | null>(null)
  /** The conversation whose answer is coming in. */
  answeringId = $state<string | null>(null)
  /** Goes up with each token of it: what lights the line. */
  tokens = $state(0)
  /** Of the conversation that is begun next. */
  #next = $state<Settings>({ ...DEFAULTS })
  open = $derived(this.conversations.find(({ id }) => id === this.openId) ?? null)
  /** How the open conversation is answered, or the next one. */
  settings = $derived<Settings>(this.open?.settings ?? this.#next)
  /** The browser has no room for conversations, or was told to keep none. */
  unsaved = $state(false)
  /** Conversations that are too large to be kept whole. */
  cut = $state(0)

  #abort: AbortController | null = null
  #savedAt = 0

  start(): void {
    this.openId = null
    this.#next = { ...DEFAULTS }
  }

  /** Changes how the open conversation is answered from now on, or the next one. */
  set(change: Partial<Settings>): void {
    if (this.open) {
      this.open.settings = { ...this.settings, ...change }
      this.#save()
    } else this.#next = { ...this.#next, ...change }
  }

  /** Takes in conversations of a file. */
  take(others: Conversation[]): void {
    this.conversations = merged(this.conversations, others)
    this.#save()
  }

  stop(): void {
    this.#abort?.abort()
  }

  remove(id: string): void {
    if (this.answeringId === id) this.stop()
    if (this.openId === id) this.openId = null
    this.conversations = this.conversations.filter((conversation) => conversation.id !== id)
    this.#save()
  }

  async say(text: string, pictures: string[], model: string): Promise<void> {
    if (this.answeringId !== null) return
    if (!this.open) {
      const id = crypto.randomUUID?.() ?? `${Date.now()}-${Math.random()}`
      this.conversations.unshift({ id, title: titleOf(text), model, updated: Date.now(), messages: [], settings: { ...this.#next } })
      this.openId = id
    }
    this.open?.messages.push({ role: 'user', content: text, ...(pictures.length > 0 && { pictures }) })
    await this.#answer(model)
  }

  /** The last answer once more, or the one that failed; an answer that was given is kept beside the new one. */
  async again(model: string): Promise<void> {
    if (this.answeringId !== null || !this.open) return
    const { messages } = this.open
    const last = messages.at(-1)
    if (last?.role !== 'assistant') return this.#answer(model)
    if (last.content && !last.error) await this.#answer(model, messages.length - 1)
    else {
      const { fork } = last
      messages.pop()
      await this.#answer(model)
      const answer = this.open?.messages.at(-1)
      if (fork && answer?.role === 'assistant') answer.fork = fork
    }
  }

  /** Asks otherwise than before: the conversation goes another way from there, and the old one is kept. */
  async edit(at: number, text: string, model: string): Promise<void> {
    const before = this.open?.messages[at]
    if (this.answeringId !== null || !this.open || before?.role !== 'user') return
    this.open.messages = forked(this.open.messages, at, { ...alone(before), content: text })
    await this.#answer(model)
  }

  /** Shows another way that the conversation went from a message on. */
  show(at: number, way: number): void {
    if (!this.open || this.answeringId === this.openId) return
    this.open.messages = switched(this.open.messages, at, way)
    this.#save()
  }

  /** Answers what was asked; beside an answer that is there, or behind all others. */
  async #answer(model: string, beside: number | null = null): Promise<void> {
    const conversation = this.open
    if (!conversation) return
    const asked = beside === null ? conversation.messages : conversation.messages.slice(0, beside)
    const messages = asked.map(saidTo)
    const { system } = this.settings
    if (system.trim()) messages.unshift({ role: 'system', content: system })
    const empty: Message = { role: 'assistant', content: '' }
    if (beside === null) conversation.messages.push(empty)
    else conversation.messages = forked(conversation.messages, beside, empty)
    conversation.model = model
    const message = conversation.messages.at(-1) as Message // as the state holds it, not the literal above
    const abort = new AbortController()
    this.#abort = abort
    this.answeringId = conversation.id
    this.tokens = 0
    const seen = { request: '' }
    const unlisten = live.onToken(({ request, route }) => {
      if (request === seen.request && message.answered) follow(message.answered, route, live.swarm)
    })
    try {
      for await (const piece of ask(this.#question(model, messages), abort.signal)) {
        this.#take(message, piece)
        seen.request = piece.facts?.request ?? seen.request
        conversation.updated = Date.now()
        this.#save(SAVE_EVERY_MS)
      }
    } catch (error) {
      if (abort.signal.aborted) message.stopped = true
      else message.error = error instanceof Error ? error.message : String(error)
    } finally {
      unlisten()
      this.answeringId = null
      this.#save()
    }
  }

  #question(model: string, messages: Question['messages']): Question {
    const { maxTokens, temperature, topP } = this.settings
    return {
      model,
      messages,
      ...(maxTokens > 0 && { max_tokens: maxTokens }),
      ...(temperature !== null && { temperature }),
      ...(topP !== null && { top_p: topP }),
    }
  }

  #take(message: Message, piece: Piece): void {
    if (piece.text) {
      message.content += piece.text
      this.tokens++
    }
    if (piece.finish === 'length') message.cut = true
    if (piece.facts) message.answered = answered(piece, message.answered)
    if (piece.tokens !== undefined && message.answered) message.answered.tokens = piece.tokens
  }

  #save(every = 0): void {
    if (Date.now() - this.#savedAt < every) return
    this.#savedAt = Date.now()
    try {
      const { kept, cut } = bounded($state.snapshot(this.conversations))
      this.cut = cut
      localStorage.setItem(STORED, JSON.stringify(kept))
      this.unsaved = false
    } catch {
      this.unsaved = true // shown in the list: the conversation goes on without being kept
    }
  }
}

function answered({ facts, tokens }: Piece, before: Answered | undefined): Answered {
  return {
    route: facts?.route ?? before?.route ?? [],
    tokens: tokens ?? before?.tokens ?? null,
    tokensPerSecond: facts?.tokens_per_s ?? before?.tokensPerSecond ?? null,
    ttftMs: facts?.ttft_ms ?? before?.ttftMs ?? null,
    reroutes: facts?.reroutes ?? before?.reroutes ?? [],
    protection: facts?.protection ?? before?.protection ?? null,
  }
}

/** After a re-route the tokens come another way than the answer's first chunk said. */
function follow(answer: Answered, route: string[], swarm: Swarm | null): void {
  if (route.length === answer.route.length && route.every((peer, i) => peer === answer.route[i]?.peer)) return
  const known = new Map(answer.route.map((hop) => [hop.peer, hop]))
  const spans = new Map(swarm?.peers.map((peer) => [peer.peer, peer]))
  answer.route = route.flatMap((peer): Hop[] => {
    const span = known.get(peer) ?? spans.get(peer)
    return span ? [{ peer, start: span.start, end: span.end, carrier: '' }] : []
  })
}

export const talk = new Talk()
