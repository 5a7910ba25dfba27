/** Conversations, and how many of them are kept. Pure. */

import type { Hop, Protection, Reroute } from '../api/types.ts'
import { isProtection } from '../ui/protection.ts'

export interface Answered {
  route: Hop[]
  tokens: number | null
  tokensPerSecond: number | null
  ttftMs: number | null
  reroutes: Reroute[]
  protection?: Protection | null
}

export interface Message {
  role: 'user' | 'assistant'
  content: string
  /** What a question shows, as data URLs. */
  pictures?: string[]
  /** How many it showed that this browser has no more: the next answers do not see them. */
  forgotten?: number
  answered?: Answered
  /** Why there is no more of it. */
  error?: string
  /** A person stopped it. */
  stopped?: boolean
  /** It reached the longest answer that was asked for. */
  cut?: boolean
  /** Other ways that the conversation went from here. */
  fork?: Fork
}

/** The ways that a conversation went from one message on, of which one is shown. */
export interface Fork {
  /** Which of them is shown. */
  at: number
  /** Each from its first message to its end; the shown one is empty here: it stands in the conversation. */
  ways: Message[][]
}

/** How a conversation is answered. */
export interface Settings {
  /** 0 leaves it to the gateway. */
  maxTokens: number
  /** null leaves it to the gateway, as for the next one. */
  temperature: number | null
  topP: number | null
  /** What the model is told before everything else. */
  system: string
}

export const DEFAULTS: Settings = { maxTokens: 0, temperature: null, topP: null, system: '' }

export interface Conversation {
  id: string
  title: string
  model: string
  /** Milliseconds since 1970. */
  updated: number
  messages: Message[]
  /** Older ones have none: then nothing was set. */
  settings?: Settings
}

export const MOST = 50
/** Browsers give a page about 5 million characters. */
export const MOST_CHARACTERS = 2_000_000

/** Of these, what pictures may take: those of the newest conversations are kept. */
export const MOST_PICTURE_CHARACTERS = 1_000_000

export interface Kept {
  kept: Conversation[]
  /** Conversations that are too large to be kept whole: of some a part is left out, of others all. */
  cut: number
}

/**
 * The newest, as many as are kept and have room.
 *
 * Pictures have a part of the room: of a conversation whose pictures go beyond it only the words are kept.
 * One that has no room loses the ways that are not shown. If that is not enough, the newest loses its beginning, and
 * leaves half of the room to others; an older one is left out, and smaller ones behind it are not.
 */
export function bounded(
  all: Conversation[], most = MOST, characters = MOST_CHARACTERS, shown = MOST_PICTURE_CHARACTERS,
): Kept {
  const kept: Conversation[] = []
  let room = characters
  let cut = 0
  for (const [place, whole] of [...all].sort((a, b) => b.updated - a.updated).slice(0, most).entries()) {
    const seen = shownIn(whole.messages)
    let one = whole
    if (seen > shown) {
      cut++
      one = { ...whole, messages: wordsAlone(whole.messages) }
    } else shown -= seen
    if (size(one) > room) {
      if (one === whole) cut++
      one = { ...one, messages: one.messages.map(alone) }
      if (size(one) > room) {
        if (place > 0) continue
        one = shortened(one, room / 2)
        if (one.messages.length === 0) continue
      }
    }
    room -= size(one)
    kept.push(one)
  }
  return { kept, cut }
}

function size(value: unknown): number {
  return JSON.stringify(value).length
}

/** Characters of the pictures of all ways. */
function shownIn(messages: Message[]): number {
  const of = ({ pictures, fork }: Message): number => size(pictures ?? []) - 2 + sum((fork?.ways ?? []).map(shownIn))
  return sum(messages.map(of))
}

function sum(numbers: number[]): number {
  return numbers.reduce((one, other) => one + other, 0)
}

/** Without pictures, whichever way a conversation went. */
function wordsAlone(messages: Message[]): Message[] {
  return messages.map(({ pictures, ...message }) => ({
    ...message,
    ...(pictures && { forgotten: pictures.length + (message.forgotten ?? 0) }),
    ...(message.fork && { fork: { ...message.fork, ways: message.fork.ways.map(wordsAlone) } }),
  }))
}

/** A message without the ways beside it. */
export function alone({ fork: _, ...message }: Message): Message {
  return message
}

function shortened(conversation: Conversation, characters: number): Conversation {
  const sizes = conversation.messages.map((message) => size(message) + 1)
  let left = size({ ...conversation, messages: [] }) + sum(sizes)
  let first = 0
  while (first < sizes.length && left > characters) {
    left -= (sizes[first] ?? 0) + (sizes[first + 1] ?? 0)
    first += 2
  }
  return { ...conversation, messages: conversation.messages.slice(first) }
}

/** What was stored, where it still makes sense. */
export function restored(text: string | null): Conversation[] {
  if (!text) return []
  let read: unknown
  try {
    read = JSON.parse(text)
  } catch {
    return [] // written by something else, or cut off: as good as nothing
  }
  return Array.isArray(read) ? read.filter(isConversation) : []
}

function isConversation(value: unknown): value is Conversation {
  const { id, title, model, updated, messages, settings } = (value ?? {}) as Record<string, unknown>
  return (
    [id, title, model].every((text) => typeof text === 'string') &&
    typeof updated === 'number' &&
    Number.isFinite(updated) &&
    isMessages(messages, 0) &&
    (settings === undefined || isSettings(settings))
  )
}

function isSettings(value: unknown): value is Settings {
  const { maxTokens, temperature, topP, system } = (value ?? {}) as Record<string, unknown>
  const isNumber = (one: unknown): boolean => one === null || (typeof one === 'number' && Number.isFinite(one))
  return typeof maxTokens === 'number' && isNumber(temperature) && isNumber(topP) && typeof system === 'string'
}

/** A file may hold anything; forks within forks end here. */
const DEEPEST = 64

function isMessages(value: unknown, depth: number): value is Message[] {
  return depth < DEEPEST && Array.isArray(value) && value.every((one) => isMessage(one, depth))
}

function isMessage(value: unknown, depth: number): value is Message {
  const { role, content, fork, answered, pictures, forgotten } = (value ?? {}) as Record<string, unknown>
  if (!(role === 'user' || role === 'assistant') || typeof content !== 'string') return false
  if (pictures !== undefined && !(Array.isArray(pictures) && pictures.every(isPicture))) return false
  if (forgotten !== undefined && !Number.isInteger(forgotten)) return false
  return (answered === undefined || isAnswered(answered)) && (fork === undefined || isFork(fork, depth))
}

function isPicture(value: unknown): value is string {
  return typeof value === 'string' && /^data:image\/(png|jpeg);base64,[A-Za-z0-9+/]+=*$/.test(value)
}

function isAnswered(value: unknown): value is Answered {
  const { route, reroutes, tokens, tokensPerSecond, ttftMs, protection } = (value ?? {}) as Record<string, unknown>
  return (
    Array.isArray(route) &&
    route.every(isHop) &&
    Array.isArray(reroutes) &&
    reroutes.every(isReroute) &&
    (protection === undefined || protection === null || isProtection(protection)) &&
    [tokens, tokensPerSecond, ttftMs].every((one) => one === null || typeof one === 'number')
  )
}

function isHop(value: unknown): value is Hop {
  const { peer, start, end } = (value ?? {}) as Record<string, unknown>
  return typeof peer === 'string' && typeof start === 'number' && typeof end === 'number'
}

function isReroute(value: unknown): value is Reroute {
  const { lost, gap_s } = (value ?? {}) as Record<string, unknown>
  return Array.isArray(lost) && lost.every((peer) => typeof peer === 'string') && typeof gap_s === 'number'
}

function isFork(value: unknown, depth: number): value is Fork {
  const { at, ways } = (value ?? {}) as Record<string, unknown>
  return (
    Array.isArray(ways) &&
    ways.every((way, i) => isMessages(way, depth + 1) && (way.length > 0 || i === at)) &&
    Number.isInteger(at) &&
    ways[at as number]?.length === 0
  )
}

/** The first words of the first question. */
export function titleOf(question: string): string {
  const line = question.trim().split('\n')[0] || 'A picture'
  return line.length > 60 ? `${line.slice(0, 57).trimEnd()}…` : line
}
