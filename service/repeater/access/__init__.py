"""Who may do what: values and pure rules, tokens, and where denials are kept. Knows no client."""
