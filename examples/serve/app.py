"""A translation service: MODEL=FOLDER uvicorn --app-dir examples/serve app:app (docs/serve.md)."""

import logging
import os
from functools import partial
from typing import Annotated, List

from fastapi import FastAPI, HTTPException
from pydantic import BaseModel, Field

from nar_plugins.hub import Batcher, from_pretrained

logging.getLogger().setLevel(logging.WARNING)  # fairseq lowers it when it is imported
app = FastAPI()
batcher = Batcher(partial(from_pretrained, os.environ["MODEL"]))  # loaded in the thread that decodes


class Request(BaseModel):
    texts: Annotated[List[Annotated[str, Field(max_length=2000)]], Field(max_length=64)]


@app.post("/translate")
def translate(request: Request):  # no "async": each waits in a thread, and the Batcher answers them together
    try:
        return [{"text": found.text, "score": found.score} for found in batcher.translate(request.texts)]
    except ValueError as error:  # a text that cannot be translated: one line that says why
        raise HTTPException(422, str(error)) from error
