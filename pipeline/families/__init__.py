"""One model family a file: where its parts are."""
