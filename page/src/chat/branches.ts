/** Conversations that go more than one way: a question that was edited, an answer that was asked for again. Pure. */

import { alone, type Conversation, type Message } from './keep.ts'

/** Ways from one message on that are kept; one more takes the place of the oldest that is not shown. */
export const MOST_WAYS = 20

/** Go another way from a message on, with another message in its place; the way so far is kept beside it. */
export function forked(messages: Message[], at: number, instead: Message): Message[] {
  const before = messages[at]
  if (!before) return [...messages, instead]
  const ways = before.fork ? [...before.fork.ways] : [[]]
  const shown = before.fork?.at ?? 0
  ways[shown] = [alone(before), ...messages.slice(at + 1)]
  if (ways.length >= MOST_WAYS) ways.splice(shown === 0 ? 1 : 0, 1)
  ways.push([])
  return [...messages.slice(0, at), { ...instead, fork: { at: ways.length - 1, ways } }]
}

/** Show another way from a message on. */
export function switched(messages: Message[], at: number, to: number): Message[] {
  const before = messages[at]
  const way = before?.fork?.ways[to]
  const [first, ...rest] = way ?? []
  if (!before?.fork || !first || to === before.fork.at) return messages
  const ways = [...before.fork.ways]
  ways[before.fork.at] = [alone(before), ...messages.slice(at + 1)]
  ways[to] = []
  return [...messages.slice(0, at), { ...first, fork: { at: to, ways } }, ...rest]
}

/** Whether a conversation has all of the words, in its title or in anything that was said, any way it went. */
export function has({ title, messages }: Conversation, words: string): boolean {
  const wanted = words.toLowerCase().split(/\s+/).filter(Boolean)
  const said = (all: Message[]): string =>
    all.map(({ content, fork }) => [content, ...(fork?.ways ?? []).map(said)].join('\n')).join('\n')
  const text = `${title}\n${said(messages)}`.toLowerCase()
  return wanted.every((word) => text.includes(word))
}
