/** Conversations, and how many of them are kept. Pure. */

import type { Hop, Reroute } from '../api/types.ts'

export interface Answered {
  route: Hop[]
  tokens: number | null
  tokensPerSecond: number | null
  ttftMs: number | null
  reroutes: Reroute[]
}

export interface Message {
  role: 'user' | 'assistant'
  content: string
  answered?: Answered
  /** Why there is no more of it. */
  error?: string
  /** A person stopped it. */
  stopped?: boolean
  /** It reached the longest answer that was asked for. */
  cut?: boolean
}

export interface Conversation {
  id: string
  title: string
  model: string
  /** Milliseconds since 1970. */
  updated: number
  messages: Message[]
}

export const MOST = 50
/** Browsers give a page about 5 million characters. */
export const MOST_CHARACTERS = 2_000_000

/** The newest, as many as are kept. The newest one is cut at its beginning if it alone is too long. */
export function bounded(all: Conversation[], most = MOST, characters = MOST_CHARACTERS): Conversation[] {
  const kept: Conversation[] = []
  let room = characters
  for (const conversation of [...all].sort((a, b) => b.updated - a.updated).slice(0, most)) {
    const size = JSON.stringify(conversation).length
    if (size > room) {
      if (kept.length === 0) kept.push(shortened(conversation, room))
      break
    }
    room -= size
    kept.push(conversation)
  }
  return kept
}

function shortened(conversation: Conversation, characters: number): Conversation {
  let first = 0
  const size = (from: number): number =>
    JSON.stringify({ ...conversation, messages: conversation.messages.slice(from) }).length
  while (first < conversation.messages.length && size(first) > characters) first += 2
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
  const { id, title, model, updated, messages } = (value ?? {}) as Record<string, unknown>
  return (
    [id, title, model].every((text) => typeof text === 'string') &&
    typeof updated === 'number' &&
    Array.isArray(messages) &&
    messages.every(isMessage)
  )
}

function isMessage(value: unknown): value is Message {
  const { role, content } = (value ?? {}) as Record<string, unknown>
  return (role === 'user' || role === 'assistant') && typeof content === 'string'
}

/** The first words of the first question. */
export function titleOf(question: string): string {
  const line = question.trim().split('\n')[0] ?? ''
  return line.length > 60 ? `${line.slice(0, 57).trimEnd()}…` : line
}
