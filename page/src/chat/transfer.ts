/** Conversations as a file that another browser can read. Pure. */

import { restored, type Conversation } from './keep.ts'

export const KIND = 'shoal.conversations'
/** Characters of a file that is read. */
export const MOST_FILE = 20_000_000

export function exported(conversations: Conversation[]): string {
  return JSON.stringify({ kind: KIND, version: 1, conversations }, null, 2)
}

/** The conversations of a file. Throws an Error with a sentence for the reader. */
export function imported(text: string): Conversation[] {
  if (text.length > MOST_FILE) throw new Error('This file is too large.')
  let read: { kind?: unknown; conversations?: unknown } | null
  try {
    read = JSON.parse(text)
  } catch {
    throw new Error('This file is not JSON.')
  }
  if (read?.kind !== KIND || !Array.isArray(read.conversations)) {
    throw new Error('This file holds no conversations of Shoal: export some on this page, and choose that file.')
  }
  const found = restored(JSON.stringify(read.conversations))
  if (found.length < read.conversations.length) throw new Error('This file is damaged: nothing was taken from it.')
  return found
}

/** Both together; of two with one id the one that was changed last. */
export function merged(here: Conversation[], others: Conversation[]): Conversation[] {
  const all = new Map(here.map((one) => [one.id, one]))
  for (const other of others) {
    const before = all.get(other.id)
    if (!before || before.updated < other.updated) all.set(other.id, other)
  }
  return [...all.values()]
}
