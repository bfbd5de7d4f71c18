"""Pictures in: image to image, inpainting, outpainting, and drawing in two passes."""
