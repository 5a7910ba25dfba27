/** Files that are sent with a question: texts within it, pictures beside it. Pure. */

import type { Message } from './keep.ts'

export interface Attachment {
  name: string
  bytes: number
  /** Of a text; empty for a picture. */
  text: string
  /** Of a picture: what it is, as a data URL. */
  picture?: string
}

/** A part of what is said: words, or a picture. */
type Part = { type: 'text'; text: string } | { type: 'image_url'; image_url: { url: string } }

/** A message as a model is told it. */
export interface Said {
  role: string
  content: string | Part[]
}

export const MOST_FILES = 8
/** Bytes of all files of a question: more than most models' contexts hold, and a part of what a browser keeps. */
export const MOST_BYTES = 500_000
/** Of a question. */
export const MOST_PICTURES = 4

/** Whether one more file has room, before it is read. Throws an Error with a sentence for the reader. */
export function checkRoom(files: Attachment[], name: string, bytes: number): void {
  if (files.length >= MOST_FILES) throw new Error(`At most ${MOST_FILES} files go with a question.`)
  const texts = files.filter(({ picture }) => !picture)
  const whole = texts.reduce((sum, file) => sum + file.bytes, bytes)
  if (whole > MOST_BYTES) throw new Error(`${name} is too large: all files of a question have at most 500 KB.`)
}

/** Whether one more picture has room. Throws an Error with a sentence for the reader. */
export function checkPictureRoom(files: Attachment[]): void {
  checkRoom(files, '', 0)
  if (pictures(files).length >= MOST_PICTURES) throw new Error(`At most ${MOST_PICTURES} pictures go with a question.`)
}

/** Those of the files that are pictures, as data URLs. */
export function pictures(files: Attachment[]): string[] {
  return files.flatMap(({ picture }) => picture ?? [])
}

/** A file as text. Throws an Error with a sentence for the reader. */
export function readText(name: string, bytes: Uint8Array): Attachment {
  checkRoom([], name, bytes.length)
  let text: string
  try {
    text = new TextDecoder('utf-8', { fatal: true }).decode(bytes)
  } catch {
    throw new Error(`${name} is no text in UTF-8: only texts and pictures can be attached.`)
  }
  if (text.includes('\0')) throw new Error(`${name} is no text: only texts and pictures can be attached.`)
  if (!text.trim()) throw new Error(`${name} is empty.`)
  return { name: name.replace(/[`\r\n]/g, '_'), text, bytes: bytes.length }
}

/** The question with its texts behind it, each within a fence that none of its own lines ends. */
export function withFiles(question: string, files: Attachment[]): string {
  const parts = files.filter(({ picture }) => !picture).map(({ name, text }) => {
    const longest = Math.max(2, ...[...text.matchAll(/`+/g)].map(([ticks]) => ticks.length))
    const fence = '`'.repeat(longest + 1)
    return `${name}:\n${fence}\n${text.replace(/\n$/, '')}\n${fence}`
  })
  return [question, ...parts].filter(Boolean).join('\n\n')
}

/** A message as it is asked: pictures stand before the words about them. */
export function saidTo({ role, content, pictures }: Message): Said {
  if (!pictures?.length) return { role, content }
  const shown = pictures.map((url): Part => ({ type: 'image_url', image_url: { url } }))
  return { role, content: content ? [...shown, { type: 'text', text: content }] : shown }
}
