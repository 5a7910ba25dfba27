/** Requests to the gateway that this page came from, with the key if one is in use. */

import { GatewayError, errorOf } from './errors.ts'
import { key } from '../state/key.svelte.ts'

/** A response with a good status. A 401 also makes the page ask for a key. */
export async function call(path: string, init: RequestInit = {}): Promise<Response> {
  const headers = new Headers(init.headers)
  if (key.value) headers.set('Authorization', `Bearer ${key.value}`)
  let response: Response
  try {
    // Relative to the page, so that a reverse proxy's prefix is kept.
    response = await fetch(new URL(path, document.baseURI), { ...init, headers, cache: 'no-store' })
  } catch (error) {
    if (init.signal?.aborted) throw error
    throw new GatewayError('The gateway does not answer.', 0)
  }
  if (response.status === 401) key.refused()
  if (!response.ok) throw await refusal(response)
  return response
}

export async function callJson<T>(path: string, init: RequestInit = {}): Promise<T> {
  return (await (await call(path, init)).json()) as T
}

async function refusal(response: Response): Promise<GatewayError> {
  const body: unknown = await response.json().catch(() => null)
  const retry = Number(response.headers.get('retry-after') ?? NaN)
  const { message, code } = errorOf(body)
  return new GatewayError(
    message ?? `The gateway answered ${response.status} ${response.statusText}.`,
    response.status,
    code,
    Number.isFinite(retry) ? retry : null,
  )
}
