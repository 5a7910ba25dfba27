"""The gateway's OpenAPI document, made of the schemas that its routes check bodies with."""

from __future__ import annotations

from functools import cache
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from shoal.gateway.schema.batches import BatchRequest
from shoal.gateway.schema.chat import ChatRequest
from shoal.gateway.schema.completions import CompletionRequest
from shoal.gateway.schema.embeddings import EmbeddingsRequest, EmbedRequest, OneEmbeddingRequest
from shoal.gateway.schema.messages import CountTokensRequest, MessagesRequest
from shoal.gateway.schema.ollama import OllamaChatRequest, OllamaGenerateRequest, PullRequest, ShowRequest
from shoal.gateway.schema.responses import ResponsesRequest
from shoal.gateway.schema.tokens import DetokenizeRequest, TokenizeRequest

BODIES: dict[str, tuple[type[BaseModel], str]] = {
    "/v1/chat/completions": (ChatRequest, "Continue a conversation"),
    "/v1/completions": (CompletionRequest, "Continue a text"),
    "/v1/responses": (ResponsesRequest, "Answer, and go on from an answer that is stored"),
    "/v1/messages": (MessagesRequest, "Continue a conversation, in Anthropic's words"),
    "/v1/messages/count_tokens": (CountTokensRequest, "How long the prompt of a conversation is"),
    "/v1/batches": (BatchRequest, "Answer many requests of one file, later"),
    "/v1/embeddings": (EmbeddingsRequest, "A vector for each text"),
    "/api/chat": (OllamaChatRequest, "Continue a conversation, in Ollama's words"),
    "/api/generate": (OllamaGenerateRequest, "Answer a prompt, in Ollama's words"),
    "/api/embed": (EmbedRequest, "A vector of length 1 for each text, in Ollama's words"),
    "/api/embeddings": (OneEmbeddingRequest, "A vector for one text, in the older words of Ollama"),
    "/api/show": (ShowRequest, "What is known of a model, in Ollama's words"),
    "/api/pull": (PullRequest, "Fetch a model onto the gateway's machine, in Ollama's words"),
    "/tokenize": (TokenizeRequest, "Token ids of a text or a conversation"),
    "/detokenize": (DetokenizeRequest, "The text of token ids"),
}
PLAIN: dict[str, str] = {
    "/v1/models": "The models that can be answered with",
    "/v1/files": "The files of the caller",
    "/v1/batches": "The batches of the caller",
    "/health": "Whether a model can be answered with",
    "/metrics": "Figures for Prometheus",
    "/api/tags": "The models, in Ollama's words",
    "/api/ps": "Those that can answer now, in Ollama's words",
    "/api/version": "The version of Ollama whose API this is",
    "/v2": "What of the open inference protocol is spoken here",
    "/v2/health/live": "Whether the gateway runs",
    "/v2/health/ready": "Whether the gateway runs; each graph has a route of its own",
    "/api/swarm": "The swarm as this machine knows it",
    "/api/market": "What the swarm offers: models, who serves them, how fast, with which protection",
    "/api/requests": "The last requests",
    "/api/health": "What the doctor found",
    "/api/history": "The last day of the swarm, a moment a minute",
    "/api/usage": "Tokens by key and day: of every key for an administrator's, of its own for another",
}
BY_ID: dict[str, dict[str, str]] = {
    "/v1/models/{id}": {"get": "One of them"},
    "/v1/responses/{id}": {"get": "A stored response", "delete": "Delete a stored response"},
    "/v1/responses/{id}/input_items": {"get": "What it was made from"},
    "/v1/files/{id}": {"get": "A file", "delete": "Delete a file"},
    "/v1/files/{id}/content": {"get": "What is in it"},
    "/v1/batches/{id}": {"get": "How far a batch is"},
    "/v1/batches/{id}/cancel": {"post": "End a batch"},
    "/v2/models/{id}": {"get": "The inputs and outputs of a graph, in the open inference protocol"},
    "/v2/models/{id}/ready": {"get": "Whether every segment of a graph is served"},
}
_FILE: dict[str, Any] = {"type": "string", "format": "binary"}
_RECORDING: dict[str, Any] = {
    "type": "object",
    "required": ["file", "model"],
    "properties": {
        "file": _FILE,
        "model": {"type": "string"},
        "language": {"type": "string"},
        "response_format": {"enum": ["json", "text", "verbose_json"]},
        "temperature": {"type": "number"},
    },
}
FORMS: dict[str, tuple[dict[str, Any], str]] = {
    "/v1/files": (
        {
            "type": "object",
            "required": ["file", "purpose"],
            "properties": {"file": _FILE, "purpose": {"const": "batch"}},
        },
        "Upload a file of requests for a batch",
    ),
    "/v1/audio/transcriptions": (_RECORDING, "Write down what is said in a WAV file"),
    "/v1/audio/translations": (_RECORDING, "The same in English"),
}
"""Routes that take a form with a file."""
_ANSWERS: dict[str, Any] = {
    "200": {"description": "The answer; events where stream is true"},
    "default": {
        "description": "An error with message, type, param and code; in Anthropic's form below /v1/messages, "
        "in Ollama's for its routes, in the open inference protocol's below /v2"
    },
}


@cache
def document() -> dict[str, Any]:
    """The whole document, OpenAPI 3.1; not to be changed."""
    models = [(model, "validation") for model, _ in BODIES.values()]
    _, definitions = models_json_schema(models, ref_template="#/components/schemas/{model}")  # pyright: ignore[reportArgumentType]
    paths: dict[str, Any] = {path: {"get": _operation(about)} for path, about in PLAIN.items()}
    for path, (model, about) in BODIES.items():
        content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{model.__name__}"}}}
        body = {"requestBody": {"required": True, "content": content}}
        paths.setdefault(path, {})["post"] = _operation(about) | body
    for path, (form, about) in FORMS.items():
        content = {"multipart/form-data": {"schema": form}}
        body = {"requestBody": {"required": True, "content": content}}
        paths.setdefault(path, {})["post"] = _operation(about) | body
    identifier = {"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}
    for path, methods in BY_ID.items():
        paths[path] = {m: _operation(about) | {"parameters": [identifier]} for m, about in methods.items()}
    tensors = {"application/json": {"schema": {"type": "object", "required": ["inputs"]}}}
    asked = {"parameters": [identifier], "requestBody": {"required": True, "content": tensors}}
    paths["/v2/models/{id}/infer"] = {"post": _operation("Run a graph") | asked}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Shoal",
            "version": "1",
            "description": "OpenAI's, Anthropic's and Ollama's APIs before a swarm.",
        },
        "security": [{"key": []}],
        "paths": paths,
        "components": {
            "schemas": definitions["$defs"],
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(about: str) -> dict[str, Any]:
    return {"summary": about, "responses": _ANSWERS}
