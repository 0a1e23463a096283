"""Labels from people: the page that asks for them, the files that hold them, and what they are worth."""
