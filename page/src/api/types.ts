/** What the gateway says: the objects of `/api/` and the part that it adds to streamed answers. */

export type Path = 'direct' | 'relayed' | 'none'

/** A peer of the swarm. One that serves nothing has no model. Blocks are `[start, end)`. */
export interface Peer {
  peer: string
  agent: string
  path: Path
  rtt_ms: number | null
  me: boolean
  expires_in_s: number
  model: string | null
  digest: string | null
  start: number
  end: number
  n_blocks: number
  format: string | null
  /** What it computes on, and the bytes of memory that this has; empty where it does not say. */
  device: string
  device_memory: number
  /** Share of the time in which it computes: less while its machine is in use, 0 while it has paused. */
  share: number
  /** Energy that a token takes there, where it says. */
  token_joules: number | null
  /** Tokens that its KV memory holds, and how many of them are free. */
  tokens: number
  tokens_free: number
  sessions: number
  step_ms: number | null
  /** Whose machine it is, as that operator has signed; null where it does not say. */
  operator: string | null
}

export interface Link {
  a: string
  b: string
  rtt_ms: number | null
  path: Path
}

export interface Model {
  id: string
  digest: string
  n_blocks: number
  /** The one of which the most blocks are served. A route has one format: what follows is said of it. */
  format: string
  /** All in which some block is served. */
  formats: string[]
  /** Neighbouring blocks with as many peers: `[start, end, peers]`, in order; the first of very many. */
  runs: [number, number, number][]
  /** Spans that nobody serves, as `start:end`; the first of very many. */
  missing: string[]
}

export interface Swarm {
  /** The gateway's own peer. */
  peer: string
  swarm: string
  /** Seconds since 1970, by the gateway's clock. */
  at: number
  /** Those that matter most to this gateway, where there are very many. */
  peers: Peer[]
  peers_in_all: number
  links: Link[]
  models: Model[]
  models_in_all: number
}

export interface Hop {
  peer: string
  start: number
  end: number
  carrier: string
}

/** Medians of one decode step at one hop, in milliseconds. */
export interface HopTimes {
  compute_ms: number
  network_ms: number
  waiting_ms: number
}

export interface Reroute {
  at: number
  gap_s: number
  lost: string[]
  way: string
}

export type RequestState = 'running' | 'done' | 'failed' | 'cancelled'

/** Tokens that were guessed ahead, once the answer is complete; empty before. */
export interface Speculation {
  steps?: number
  guessed?: number
  accepted?: number
  /** Why nothing could be guessed. */
  off?: string
  /** How much faster tokens came while guesses were sent. */
  gain?: number
  /** The same tokens by what guessed them: `ngram`, `draft`. */
  sources?: Record<string, { guessed: number; accepted: number }>
  /** The draft model, if one is set. */
  draft?: string
  /** Why it does not guess, where it cannot. */
  draft_off?: string
}

/** One hop of an answer that was computed again. */
export interface Audit {
  peer: string
  verdict: 'same' | 'cheat' | 'open'
  by: string[]
  /** In a sentence. */
  what: string
  /** Of which replica the hop is; 0: of those that gave the answer. */
  replica?: number
}

/** How well an answer is protected from peers that compute something else. */
export interface Protection {
  asked: string
  level: string
  signed_by: string[]
  audits: Audit[]
  faults: string[]
  /** What peers have shown to run on. */
  attested?: { peer: string; shown: string }[]
  /** The peers that have computed it, by replica and hop. */
  replicas?: string[][]
}

/** Blocks that the gateway runs itself, with what a decode step takes it. */
export interface OwnBlocks {
  start: number
  end: number
  weight_bytes: number
  kv_bytes_per_token: number
  compute_ms: number
}

export interface Request {
  id: string
  model: string
  state: RequestState
  started: number
  prompt_tokens: number
  tokens: number
  ttft_ms: number | null
  tokens_per_s: number | null
  error: string | null
  route: Hop[]
  hops: HopTimes[]
  own: OwnBlocks[]
  reroutes: Reroute[]
  speculation: Speculation
  protection?: Protection | null
}

/** A token has passed: lights the line. */
export interface Token {
  request: string
  n: number
  route: string[]
}

export type Severity = 'ok' | 'note' | 'warning' | 'error'

export interface Check {
  name: string
  ok: boolean
  severity: Severity
  message: string
  check: string
  next_command: string
}

export interface Health {
  ok: boolean
  checks: Check[]
}

/** A minute of the swarm, as the gateway saw it. */
export interface Moment {
  /** Since 1970. */
  minute: number
  peers: number
  /** Share of the gateway's own model that is served, 0 to 1. */
  covered: number
  /** Tokens of answers within this minute. */
  tokens: number
}

export interface History {
  model: string
  /** Of the last day, the oldest first; minutes in which the gateway did not run are missing. */
  moments: Moment[]
}

/** What one node offers, as `shoal market` lists it. */
export interface MarketSpan {
  model: string
  start: number
  end: number
  peer: string
  format: string
  tokens_per_s: number | null
  tokens_free: number
  share: number
  /** The hardware that it says to show; empty where it shows none. */
  attests: string
  /** Whether audits have found that it computed something else. */
  found_out: boolean
  /** Of a million tokens of one block, in coins; empty where it asks nothing. */
  price: string
}

export interface Market {
  models: {
    name: string
    digest: string
    n_blocks: number
    format: string
    peers: number
    complete: boolean
    tokens_per_s: number | null
    protection: string[]
  }[]
  spans: MarketSpan[]
  peers_in_all: number
}

export interface Money {
  /** The oldest first; in coins. Hours in which nothing is known are missing. */
  hours: { hour: number; earned: string; spent: string }[]
}

export interface UsedByKey {
  /** By UTC, for example `2030-01-31`, the oldest first. */
  days: string[]
  /** Those who used the most first; tokens read and written on each of the days. */
  keys: { key: string; name: string; tokens: number[] }[]
}

export interface Invite {
  command: string
  code: string
  qr_svg: string
  /** The swarm's nodes can be reached on their own machine alone. */
  here_only: boolean
}

/** What the first and the last chunk of a streamed answer say beyond OpenAI's fields. */
export interface AnswerFacts {
  request: string
  route: Hop[]
  tokens_per_s: number | null
  ttft_ms: number | null
  reroutes: Reroute[]
  protection?: Protection | null
}
