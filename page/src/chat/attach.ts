/** Files that are sent with a question, as text within it. Pure. */

export interface Attachment {
  name: string
  text: string
}

export const MOST_FILES = 8
/** Bytes of one file: more than most models' contexts hold. */
export const MOST_BYTES = 1_000_000

/** A file as text. Throws an Error with a sentence for the reader. */
export function readText(name: string, bytes: Uint8Array): Attachment {
  if (bytes.length > MOST_BYTES) throw new Error(`${name} is larger than 1 MB.`)
  let text: string
  try {
    text = new TextDecoder('utf-8', { fatal: true }).decode(bytes)
  } catch {
    throw new Error(`${name} is no text in UTF-8: only text can be attached.`)
  }
  if (text.includes('\0')) throw new Error(`${name} is no text: only text can be attached.`)
  if (!text.trim()) throw new Error(`${name} is empty.`)
  return { name: name.replace(/[`\r\n]/g, '_'), text }
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
