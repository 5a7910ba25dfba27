/** Files that are sent with a question, as text within it. Pure. */

export interface Attachment {
  name: string
  text: string
  bytes: number
}

export const MOST_FILES = 8
/** Bytes of all files of a question: more than most models' contexts hold, and a part of what a browser keeps. */
export const MOST_BYTES = 500_000

/** Whether one more file has room, before it is read. Throws an Error with a sentence for the reader. */
export function checkRoom(files: Attachment[], name: string, bytes: number): void {
  if (files.length >= MOST_FILES) throw new Error(`At most ${MOST_FILES} files go with a question.`)
  const whole = files.reduce((sum, file) => sum + file.bytes, bytes)
  if (whole > MOST_BYTES) throw new Error(`${name} is too large: all files of a question have at most 500 KB.`)
}

/** A file as text. Throws an Error with a sentence for the reader. */
export function readText(name: string, bytes: Uint8Array): Attachment {
  checkRoom([], name, bytes.length)
  let text: string
  try {
    text = new TextDecoder('utf-8', { fatal: true }).decode(bytes)
  } catch {
    throw new Error(`${name} is no text in UTF-8: only text can be attached.`)
  }
  if (text.includes('\0')) throw new Error(`${name} is no text: only text can be attached.`)
  if (!text.trim()) throw new Error(`${name} is empty.`)
  return { name: name.replace(/[`\r\n]/g, '_'), text, bytes: bytes.length }
}

/** The question with its files behind it, each within a fence that none of its own lines ends. */
export function withFiles(question: string, files: Attachment[]): string {
  const parts = files.map(({ name, text }) => {
    const longest = Math.max(2, ...[...text.matchAll(/`+/g)].map(([ticks]) => ticks.length))
    const fence = '`'.repeat(longest + 1)
    return `${name}:\n${fence}\n${text.replace(/\n$/, '')}\n${fence}`
  })
  return [question, ...parts].filter(Boolean).join('\n\n')
}
