#!/bin/sh
# The llm command: pip install llm. It knows models by a file in its own folder.
set -eu
model=$(curl -fsS "$OPENAI_BASE_URL/models" -H "Authorization: Bearer $OPENAI_API_KEY" |
    sed 's/.*"id": *"\([^"]*\)".*/\1/')
folder=$(dirname "$(llm logs path)")
printf -- '- model_id: shoal\n  model_name: "%s"\n  api_base: "%s"\n' "$model" "$OPENAI_BASE_URL" \
    >"$folder/extra-openai-models.yaml"
llm --model shoal --key "$OPENAI_API_KEY" --option max_tokens 16 --option temperature 0 "What is a shoal?"
