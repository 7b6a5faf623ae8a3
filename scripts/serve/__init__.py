"""The servers: nothing else in the house imports starlette or uvicorn."""
