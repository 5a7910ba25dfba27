/** What to type or paste so that an app uses this gateway. Pure. */

export interface Lines {
  id: string
  title: string
  /** What it needs first, if anything. */
  first: string | null
  text: string
}

/** A program that the gateway knows how to set up: `shoal launch` does the same, from the same source. */
export interface AppLines extends Lines {
  /** The command that does all of it. */
  launch: string
  note: string
}

/** Where the gateway tells what programs need. */
export function appsPath(origin: string, model: string, keyed: boolean): string {
  return `api/apps?${new URLSearchParams({ origin, model, keyed: String(keyed) })}`
}

/** Shown where a key goes: the key itself is never put on the screen. */
export const KEY_HINT = 'YOUR_SHOAL_KEY'
/** Clients insist on some key; a gateway without keys takes any. */
const NO_KEY = 'none'

export function linesFor(origin: string, model: string, keyed: boolean): Lines[] {
  const base = `${origin}/v1`
  const key = keyed ? KEY_HINT : NO_KEY
  return [
    { id: 'curl', title: 'curl', first: null, text: curl(base, model, keyed) },
    { id: 'python', title: 'Python', first: 'pip install openai', text: python(base, model, key) },
    { id: 'javascript', title: 'JavaScript', first: 'npm install openai', text: javascript(base, model, key) },
    {
      id: 'environment',
      title: 'Environment',
      first: null,
      text: `export OPENAI_BASE_URL=${shell(base)}\nexport OPENAI_API_KEY=${shell(key)}\nexport OPENAI_MODEL=${shell(model)}`,
    },
  ]
}

function curl(base: string, model: string, keyed: boolean): string {
  const body = JSON.stringify({ model, messages: [{ role: 'user', content: 'Hello' }] })
  const auth = keyed ? ` \\\n  -H ${shell(`Authorization: Bearer ${KEY_HINT}`)}` : ''
  return `curl ${shell(`${base}/chat/completions`)}${auth} \\\n  -H 'Content-Type: application/json' \\\n  -d ${shell(body)}`
}

function python(base: string, model: string, key: string): string {
  return `from openai import OpenAI

client = OpenAI(base_url=${quoted(base)}, api_key=${quoted(key)})
answer = client.chat.completions.create(
    model=${quoted(model)},
    messages=[{"role": "user", "content": "Hello"}],
    stream=True,
)
for chunk in answer:
    if chunk.choices:
        print(chunk.choices[0].delta.content or "", end="", flush=True)`
}

function javascript(base: string, model: string, key: string): string {
  return `import OpenAI from 'openai'

const client = new OpenAI({ baseURL: ${quoted(base)}, apiKey: ${quoted(key)} })
const answer = await client.chat.completions.create({
  model: ${quoted(model)},
  messages: [{ role: 'user', content: 'Hello' }],
  stream: true,
})
for await (const chunk of answer) process.stdout.write(chunk.choices[0]?.delta?.content ?? '')`
}

/** A word of a POSIX shell: a model's name comes from peers, and people paste this into terminals. */
export function shell(word: string): string {
  // Control characters would act in a terminal, whatever the quotes.
  const plain = word.replace(/\p{Cc}/gu, '')
  return /^[\w@%+=:,./-]+$/.test(plain) ? plain : `'${plain.replaceAll("'", `'\\''`)}'`
}

/** A string literal in Python and JavaScript. */
function quoted(text: string): string {
  return JSON.stringify(text).replace(/[\u007f-\u009f\u2028\u2029]/g, (c) => `\\u${c.charCodeAt(0).toString(16).padStart(4, '0')}`)
}
