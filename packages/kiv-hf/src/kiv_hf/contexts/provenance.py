"""stand-in"""
def provenance_of(model, tokenizer=None): return {"x": "y"}
def check_provenance(saved, now): assert dict(saved)==dict(now)
