"""What methods are built from: blocks, patches, masks, diffusion, losses."""
