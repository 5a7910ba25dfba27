/** Refusals of the gateway. Pure. */

/** The gateway, or the way to it, said no. `status` is 0 when it could not be reached at all. */
export class GatewayError extends Error {
  readonly status: number
  readonly code: string | null
  readonly retryAfter: number | null

  constructor(message: string, status: number, code: string | null = null, retryAfter: number | null = null) {
    super(message)
    this.name = 'GatewayError'
    this.status = status
    this.code = code
    this.retryAfter = retryAfter
  }
}

/** Message and code of OpenAI's error object, wherever it stands. */
export function errorOf(body: unknown): { message: string | null; code: string | null } {
  const error = (body as { error?: unknown } | null)?.error
  if (typeof error === 'string') return { message: error, code: null }
  const { message, code } = (error ?? {}) as { message?: unknown; code?: unknown }
  return {
    message: typeof message === 'string' ? message : null,
    code: typeof code === 'string' ? code : null,
  }
}
