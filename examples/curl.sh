#!/bin/sh
# Nothing but curl. -N shows a stream as it comes; -f makes an error an exit code.
set -eu
model=$(curl -fsS "$OPENAI_BASE_URL/models" -H "Authorization: Bearer $OPENAI_API_KEY" |
    sed 's/.*"id": *"\([^"]*\)".*/\1/')
curl -fsSN "$OPENAI_BASE_URL/chat/completions" \
    -H "Authorization: Bearer $OPENAI_API_KEY" -H "Content-Type: application/json" \
    -d "{\"model\": \"$model\", \"stream\": true, \"max_tokens\": 16, \"temperature\": 0,
         \"messages\": [{\"role\": \"user\", \"content\": \"What is a shoal?\"}]}"
