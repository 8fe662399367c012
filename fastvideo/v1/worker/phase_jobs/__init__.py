"""One job class a phase."""

from fastvideo.v1.pipelines.phase import Phase
from fastvideo.v1.worker.phase_jobs.base import InputDamaged, InputMissing, JobSettings, PhaseJob, Product
from fastvideo.v1.worker.phase_jobs.decode import DecodeJob
from fastvideo.v1.worker.phase_jobs.denoise import DenoiseJob
from fastvideo.v1.worker.phase_jobs.encode import EncodeJob

PHASE_JOBS: dict[Phase, type[PhaseJob]] = {
    Phase.ENCODE: EncodeJob,
    Phase.DENOISE: DenoiseJob,
    Phase.DECODE: DecodeJob,
}

__all__ = ["PHASE_JOBS", "InputDamaged", "InputMissing", "JobSettings", "PhaseJob", "Product"]
