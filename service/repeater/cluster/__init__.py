"""Several nodes that behave like one server: members, questions, denials and places over all."""
