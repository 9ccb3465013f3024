"""Family `multivector`: late interaction over the token vectors of every document."""
