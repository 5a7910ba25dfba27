/** Pictures as they are sent: no larger than a model looks at, so that they travel soon and are kept. */

import type { Attachment } from './attach.ts'

/** Pixels of the longer side; what looks at a picture scales it to fewer. */
const LONGEST = 1024
const QUALITY = 0.85
/** Bytes of a PNG that is sent as it is: a drawing or a text, which JPEG would blur. */
const SMALL = 150_000

/** A file as a picture. Throws an Error with a sentence for the reader. */
export async function readPicture(file: File): Promise<Attachment> {
  let bitmap: ImageBitmap
  try {
    bitmap = await createImageBitmap(file)
  } catch {
    throw new Error(`${file.name} cannot be read as a picture.`)
  }
  const scale = Math.min(1, LONGEST / Math.max(bitmap.width, bitmap.height))
  const asItIs = scale === 1 && file.type === 'image/png' && file.size <= SMALL
  const picture = asItIs ? await dataUrl(file) : drawn(bitmap, scale)
  bitmap.close()
  return { name: file.name, bytes: picture.length, text: '', picture }
}

async function dataUrl(file: File): Promise<string> {
  const bytes = new Uint8Array(await file.arrayBuffer())
  return `data:image/png;base64,${btoa(Array.from(bytes, (byte) => String.fromCharCode(byte)).join(''))}`
}

function drawn(bitmap: ImageBitmap, scale: number): string {
  const canvas = document.createElement('canvas')
  canvas.width = Math.max(1, Math.round(bitmap.width * scale))
  canvas.height = Math.max(1, Math.round(bitmap.height * scale))
  const context = canvas.getContext('2d')
  if (!context) throw new Error('This browser cannot draw pictures.')
  context.fillStyle = '#fff' // JPEG has no transparency
  context.fillRect(0, 0, canvas.width, canvas.height)
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height)
  return canvas.toDataURL('image/jpeg', QUALITY)
}
