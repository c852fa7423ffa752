"""How keys and values are made: by linear maps, or through a small latent that decoding keeps."""
